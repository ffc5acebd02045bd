MODEL (
    name facts.test_summary_fact,
    kind INCREMENTAL_BY_UNIQUE_KEY (unique_key (student_id, test_id))
);

WITH touched AS (
    SELECT student_id, test_id FROM public.answers
    WHERE "timestamp" BETWEEN @start_tstz AND @end_tstz
    UNION
    SELECT student_id, test_id FROM public.submissions
    WHERE submit_time BETWEEN @start_tstz AND @end_tstz
), total AS (
    SELECT t.test_id, count(DISTINCT i.question_id) AS total_questions
    FROM (SELECT DISTINCT test_id FROM touched) t
    JOIN facts.question_interaction_fact i ON i.test_id = t.test_id
    GROUP BY t.test_id
), to_compute AS (
    SELECT student_id, test_id FROM touched
    UNION
    -- The model itself: rows of tests whose number of questions has changed.
    SELECT f.student_id, f.test_id FROM facts.test_summary_fact f
    JOIN total n ON n.test_id = f.test_id
    WHERE f.total_questions <> n.total_questions
)
SELECT i.student_id::bigint, i.test_id::bigint, n.total_questions::bigint,
    count(*)::bigint AS questions_attempted,
    (count(*) FILTER (WHERE i.is_correct))::bigint AS correct_answers,
    (100::double precision * count(*) FILTER (WHERE i.is_correct) / count(*))::double precision
        AS accuracy_percent,
    extract(epoch FROM max(i.last_answer_time) - min(i.first_answer_time))::double precision
        AS time_spent
FROM to_compute t
JOIN facts.question_interaction_fact i
    ON i.student_id = t.student_id AND i.test_id = t.test_id
JOIN total n ON n.test_id = t.test_id
GROUP BY i.student_id, i.test_id, n.total_questions;

CREATE INDEX IF NOT EXISTS sqlmesh_summary_key ON facts.test_summary_fact (student_id, test_id);
CREATE INDEX IF NOT EXISTS sqlmesh_summary_test ON facts.test_summary_fact (test_id);
