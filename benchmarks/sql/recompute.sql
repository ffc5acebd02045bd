-- The floor: all three facts from all base rows, into empty tables with primary keys. Like every
-- contestant but this project it takes for granted what is so in these data: a session and a
-- question have one row at most, and no id is null.
CREATE TEMPORARY TABLE valid ON COMMIT DROP AS
SELECT a.student_id, a.test_id, a.question_id, a."timestamp", a.answer_id, a.submitted_option
FROM answers a LEFT JOIN sessions s ON s.session_id = a.session_id
WHERE s.expiry_time IS NULL OR a."timestamp" <= s.expiry_time;
ANALYZE valid;

INSERT INTO plain.question_interaction_fact
SELECT v.student_id, v.test_id, v.question_id, v.first_answer_time, v.last_answer_time,
    v.answer_count, v.final_answer_option,
    CASE WHEN q.correct_option IS NOT NULL
        THEN coalesce(v.final_answer_option = q.correct_option, false) END,
    v.answer_count > 1,
    extract(epoch FROM v.last_answer_time - v.first_answer_time)::double precision
FROM (
    SELECT student_id, test_id, question_id, min("timestamp") AS first_answer_time,
        max("timestamp") AS last_answer_time, count(*) AS answer_count,
        (array_agg(submitted_option ORDER BY "timestamp" DESC, answer_id DESC))[1]
            AS final_answer_option
    FROM valid GROUP BY student_id, test_id, question_id
) v LEFT JOIN questions q ON q.question_id = v.question_id;

INSERT INTO plain.test_summary_fact
SELECT i.student_id, i.test_id, t.total_questions, count(*),
    count(*) FILTER (WHERE is_correct),
    100::double precision * count(*) FILTER (WHERE is_correct) / count(*),
    extract(epoch FROM max(last_answer_time) - min(first_answer_time))::double precision
FROM plain.question_interaction_fact i
JOIN (
    SELECT test_id, count(*) AS total_questions
    FROM (SELECT DISTINCT test_id, question_id FROM plain.question_interaction_fact) q
    GROUP BY test_id
) t ON t.test_id = i.test_id
GROUP BY i.student_id, i.test_id, t.total_questions;

-- A sitting begins with the first answer after the submission before it. Submissions at the same
-- time share a sitting. A student's test has few submissions, so the join stays small.
INSERT INTO plain.test_funnel_fact
WITH ended AS (
    SELECT student_id, test_id, submit_time, count(*) AS submissions,
        count(*) FILTER (WHERE lower(completion_status) = 'completed') AS completed,
        lag(submit_time, 1, '-infinity') OVER (
            PARTITION BY student_id, test_id ORDER BY submit_time) AS before
    FROM submissions WHERE submit_time IS NOT NULL
    GROUP BY student_id, test_id, submit_time
), sitting AS (
    SELECT e.student_id, e.test_id, e.submit_time, e.submissions, e.completed,
        min(v."timestamp") AS began
    FROM ended e LEFT JOIN valid v ON v.student_id = e.student_id AND v.test_id = e.test_id
        AND v."timestamp" > e.before AND v."timestamp" <= e.submit_time
    GROUP BY e.student_id, e.test_id, e.submit_time, e.submissions, e.completed
)
SELECT test_id, sum(submissions), sum(completed), sum(submissions) - sum(completed),
    100::double precision * sum(completed)::double precision / sum(submissions)::double precision,
    sum(extract(epoch FROM submit_time - began) * submissions)::double precision
        / nullif(sum(submissions) FILTER (WHERE began IS NOT NULL), 0)::double precision
FROM sitting GROUP BY test_id;
