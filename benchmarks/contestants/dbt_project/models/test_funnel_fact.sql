{# Microbatch demands an event_time. Nothing downstream is filtered by it. #}
{{ config(
    unique_key=['test_id'],
    event_time='hour',
    indexes=[{'columns': ['test_id'], 'unique': true}],
) }}
WITH {{ touched() }},
ended AS (
    SELECT s.student_id, s.test_id, s.submit_time, count(*) AS submissions,
        count(*) FILTER (WHERE lower(s.completion_status) = 'completed') AS completed,
        lag(s.submit_time, 1, '-infinity') OVER (
            PARTITION BY s.student_id, s.test_id ORDER BY s.submit_time) AS before
    FROM (SELECT DISTINCT test_id FROM touched) t
    JOIN {{ source('base', 'submissions') }} s ON s.test_id = t.test_id
    WHERE s.submit_time IS NOT NULL
    GROUP BY s.student_id, s.test_id, s.submit_time
), sitting AS (
    SELECT e.student_id, e.test_id, e.submit_time, e.submissions, e.completed,
        min(a."timestamp") FILTER (
            WHERE s.expiry_time IS NULL OR a."timestamp" <= s.expiry_time) AS began
    FROM ended e
    LEFT JOIN {{ source('base', 'answers') }} a
        ON a.student_id = e.student_id AND a.test_id = e.test_id
        AND a."timestamp" > e.before AND a."timestamp" <= e.submit_time
    LEFT JOIN {{ source('base', 'sessions') }} s ON s.session_id = a.session_id
    GROUP BY e.student_id, e.test_id, e.submit_time, e.submissions, e.completed
)
SELECT test_id, sum(submissions)::bigint AS total_submissions,
    sum(completed)::bigint AS completed_submissions,
    (sum(submissions) - sum(completed))::bigint AS incomplete_submissions,
    100::double precision * sum(completed)::double precision / sum(submissions)::double precision
        AS completion_rate,
    sum(extract(epoch FROM submit_time - began) * submissions)::double precision
        / nullif(sum(submissions) FILTER (WHERE began IS NOT NULL), 0)::double precision
        AS avg_submit_time
FROM sitting GROUP BY test_id
