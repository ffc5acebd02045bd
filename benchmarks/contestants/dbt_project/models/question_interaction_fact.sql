{{ config(
    unique_key=['student_id', 'test_id', 'question_id'],
    event_time='last_answer_time',
    indexes=[
        {'columns': ['student_id', 'test_id', 'question_id'], 'unique': true},
        {'columns': ['test_id', 'question_id']},
    ],
) }}
WITH {{ touched() }},
valid AS (
    SELECT a.student_id, a.test_id, a.question_id, a."timestamp", a.answer_id, a.submitted_option
    FROM touched t
    JOIN {{ source('base', 'answers') }} a ON a.student_id = t.student_id AND a.test_id = t.test_id
    LEFT JOIN {{ source('base', 'sessions') }} s ON s.session_id = a.session_id
    WHERE s.expiry_time IS NULL OR a."timestamp" <= s.expiry_time
), grouped AS (
    SELECT student_id, test_id, question_id, min("timestamp") AS first_answer_time,
        max("timestamp") AS last_answer_time, count(*) AS answer_count,
        (array_agg(submitted_option ORDER BY "timestamp" DESC, answer_id DESC))[1]
            AS final_answer_option
    FROM valid GROUP BY student_id, test_id, question_id
)
SELECT v.student_id, v.test_id, v.question_id, v.first_answer_time, v.last_answer_time,
    v.answer_count, v.final_answer_option,
    CASE WHEN q.correct_option IS NOT NULL
        THEN coalesce(v.final_answer_option = q.correct_option, false) END AS is_correct,
    v.answer_count > 1 AS revisited,
    extract(epoch FROM v.last_answer_time - v.first_answer_time)::double precision AS time_spent
FROM grouped v LEFT JOIN {{ source('base', 'questions') }} q ON q.question_id = v.question_id
