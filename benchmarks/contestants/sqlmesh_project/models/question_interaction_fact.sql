MODEL (
    name facts.question_interaction_fact,
    kind INCREMENTAL_BY_UNIQUE_KEY (unique_key (student_id, test_id, question_id)),
    physical_properties (),
);

WITH touched AS (
    SELECT student_id, test_id FROM public.answers
    WHERE "timestamp" BETWEEN @start_tstz AND @end_tstz
    UNION
    SELECT student_id, test_id FROM public.submissions
    WHERE submit_time BETWEEN @start_tstz AND @end_tstz
), valid AS (
    SELECT a.student_id, a.test_id, a.question_id, a."timestamp", a.answer_id, a.submitted_option
    FROM touched t
    JOIN public.answers a ON a.student_id = t.student_id AND a.test_id = t.test_id
    LEFT JOIN public.sessions s ON s.session_id = a.session_id
    WHERE s.expiry_time IS NULL OR a."timestamp" <= s.expiry_time
), grouped AS (
    SELECT student_id, test_id, question_id, min("timestamp") AS first_answer_time,
        max("timestamp") AS last_answer_time, count(*) AS answer_count,
        (array_agg(submitted_option ORDER BY "timestamp" DESC, answer_id DESC))[1]
            AS final_answer_option
    FROM valid GROUP BY student_id, test_id, question_id
)
SELECT v.student_id::bigint, v.test_id::bigint, v.question_id::bigint,
    v.first_answer_time::timestamptz, v.last_answer_time::timestamptz,
    v.answer_count::bigint, v.final_answer_option::text,
    (CASE WHEN q.correct_option IS NOT NULL
        THEN coalesce(v.final_answer_option = q.correct_option, false) END)::boolean AS is_correct,
    (v.answer_count > 1)::boolean AS revisited,
    extract(epoch FROM v.last_answer_time - v.first_answer_time)::double precision AS time_spent
FROM grouped v LEFT JOIN public.questions q ON q.question_id = v.question_id;

CREATE INDEX IF NOT EXISTS sqlmesh_interaction_key
    ON facts.question_interaction_fact (student_id, test_id, question_id);
CREATE INDEX IF NOT EXISTS sqlmesh_interaction_test ON facts.question_interaction_fact (test_id, question_id);
