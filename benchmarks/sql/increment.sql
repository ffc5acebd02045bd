-- The hand-written increment over [start, end): what a careful engineer writes. Students' tests with
-- a row in the window are computed again from all their rows, in one transaction; then the number
-- of questions and the funnel of their tests.
CREATE TEMPORARY TABLE touched (student_id bigint, test_id bigint, PRIMARY KEY (student_id, test_id))
    ON COMMIT DROP;
INSERT INTO touched
SELECT student_id, test_id FROM answers
WHERE "timestamp" >= %(start)s AND "timestamp" < %(end)s
UNION
SELECT student_id, test_id FROM submissions
WHERE submit_time >= %(start)s AND submit_time < %(end)s;
ANALYZE touched;

CREATE TEMPORARY TABLE valid ON COMMIT DROP AS
SELECT a.student_id, a.test_id, a.question_id, a."timestamp", a.answer_id, a.submitted_option
FROM touched t
JOIN answers a ON a.student_id = t.student_id AND a.test_id = t.test_id
LEFT JOIN sessions s ON s.session_id = a.session_id
WHERE s.expiry_time IS NULL OR a."timestamp" <= s.expiry_time;

CREATE TEMPORARY TABLE interaction ON COMMIT DROP AS
SELECT v.student_id, v.test_id, v.question_id, v.first_answer_time, v.last_answer_time,
    v.answer_count, v.final_answer_option,
    CASE WHEN q.correct_option IS NOT NULL
        THEN coalesce(v.final_answer_option = q.correct_option, false) END AS is_correct,
    v.answer_count > 1 AS revisited,
    extract(epoch FROM v.last_answer_time - v.first_answer_time)::double precision AS time_spent
FROM (
    SELECT student_id, test_id, question_id, min("timestamp") AS first_answer_time,
        max("timestamp") AS last_answer_time, count(*) AS answer_count,
        (array_agg(submitted_option ORDER BY "timestamp" DESC, answer_id DESC))[1]
            AS final_answer_option
    FROM valid GROUP BY student_id, test_id, question_id
) v LEFT JOIN questions q ON q.question_id = v.question_id;
ALTER TABLE interaction ADD PRIMARY KEY (student_id, test_id, question_id);
ANALYZE interaction;

DELETE FROM plain.question_interaction_fact f USING touched t
WHERE f.student_id = t.student_id AND f.test_id = t.test_id
    AND NOT EXISTS (
        SELECT FROM interaction i
        WHERE i.student_id = t.student_id AND i.test_id = t.test_id
            AND i.question_id = f.question_id);
INSERT INTO plain.question_interaction_fact AS f SELECT * FROM interaction
ON CONFLICT (student_id, test_id, question_id) DO UPDATE SET
    first_answer_time = excluded.first_answer_time,
    last_answer_time = excluded.last_answer_time,
    answer_count = excluded.answer_count,
    final_answer_option = excluded.final_answer_option,
    is_correct = excluded.is_correct,
    revisited = excluded.revisited,
    time_spent = excluded.time_spent
WHERE (f.first_answer_time, f.last_answer_time, f.answer_count, f.final_answer_option, f.is_correct)
    IS DISTINCT FROM (excluded.first_answer_time, excluded.last_answer_time, excluded.answer_count,
        excluded.final_answer_option, excluded.is_correct);

CREATE TEMPORARY TABLE total ON COMMIT DROP AS
SELECT t.test_id, count(DISTINCT f.question_id) AS total_questions
FROM (SELECT DISTINCT test_id FROM touched) t
JOIN plain.question_interaction_fact f ON f.test_id = t.test_id
GROUP BY t.test_id;

DELETE FROM plain.test_summary_fact f USING touched t
WHERE f.student_id = t.student_id AND f.test_id = t.test_id
    AND NOT EXISTS (
        SELECT FROM interaction i WHERE i.student_id = t.student_id AND i.test_id = t.test_id);
INSERT INTO plain.test_summary_fact AS f
SELECT i.student_id, i.test_id, n.total_questions, count(*), count(*) FILTER (WHERE i.is_correct),
    100::double precision * count(*) FILTER (WHERE i.is_correct) / count(*),
    extract(epoch FROM max(i.last_answer_time) - min(i.first_answer_time))::double precision
FROM interaction i JOIN total n ON n.test_id = i.test_id
GROUP BY i.student_id, i.test_id, n.total_questions
ON CONFLICT (student_id, test_id) DO UPDATE SET
    total_questions = excluded.total_questions,
    questions_attempted = excluded.questions_attempted,
    correct_answers = excluded.correct_answers,
    accuracy_percent = excluded.accuracy_percent,
    time_spent = excluded.time_spent
WHERE (f.total_questions, f.questions_attempted, f.correct_answers, f.time_spent)
    IS DISTINCT FROM (excluded.total_questions, excluded.questions_attempted,
        excluded.correct_answers, excluded.time_spent);
UPDATE plain.test_summary_fact f SET total_questions = n.total_questions
FROM total n WHERE f.test_id = n.test_id AND f.total_questions <> n.total_questions;

CREATE TEMPORARY TABLE funnel ON COMMIT DROP AS
WITH ended AS (
    SELECT s.student_id, s.test_id, s.submit_time, count(*) AS submissions,
        count(*) FILTER (WHERE lower(s.completion_status) = 'completed') AS completed,
        lag(s.submit_time, 1, '-infinity') OVER (
            PARTITION BY s.student_id, s.test_id ORDER BY s.submit_time) AS before
    FROM (SELECT DISTINCT test_id FROM touched) t JOIN submissions s ON s.test_id = t.test_id
    WHERE s.submit_time IS NOT NULL
    GROUP BY s.student_id, s.test_id, s.submit_time
), sitting AS (
    SELECT e.student_id, e.test_id, e.submit_time, e.submissions, e.completed,
        min(a."timestamp") FILTER (
            WHERE s.expiry_time IS NULL OR a."timestamp" <= s.expiry_time) AS began
    FROM ended e
    LEFT JOIN answers a ON a.student_id = e.student_id AND a.test_id = e.test_id
        AND a."timestamp" > e.before AND a."timestamp" <= e.submit_time
    LEFT JOIN sessions s ON s.session_id = a.session_id
    GROUP BY e.student_id, e.test_id, e.submit_time, e.submissions, e.completed
)
SELECT test_id, sum(submissions) AS total_submissions, sum(completed) AS completed_submissions,
    sum(submissions) - sum(completed) AS incomplete_submissions,
    100::double precision * sum(completed)::double precision / sum(submissions)::double precision
        AS completion_rate,
    sum(extract(epoch FROM submit_time - began) * submissions)::double precision
        / nullif(sum(submissions) FILTER (WHERE began IS NOT NULL), 0)::double precision
        AS avg_submit_time
FROM sitting GROUP BY test_id;

DELETE FROM plain.test_funnel_fact f USING touched t
WHERE f.test_id = t.test_id AND NOT EXISTS (SELECT FROM funnel n WHERE n.test_id = t.test_id);
INSERT INTO plain.test_funnel_fact AS f SELECT * FROM funnel
ON CONFLICT (test_id) DO UPDATE SET
    total_submissions = excluded.total_submissions,
    completed_submissions = excluded.completed_submissions,
    incomplete_submissions = excluded.incomplete_submissions,
    completion_rate = excluded.completion_rate,
    avg_submit_time = excluded.avg_submit_time
WHERE (f.total_submissions, f.completed_submissions, f.avg_submit_time)
    IS DISTINCT FROM (excluded.total_submissions, excluded.completed_submissions,
        excluded.avg_submit_time);
