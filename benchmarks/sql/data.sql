-- Fills empty base tables with a test platform's logs, the same for the same parameters:
--   tests, tests_per_student: the shape
--   past: students' tests begun before the hours to measure, spread over those hours evenly
--   present: students' tests begun per hour from three hours before the hours to measure
--   start, measured: the first hour, and the first of the hours to measure
-- Rows of the hours to measure go to the schema `later`, from which a run takes those that have come.
CREATE FUNCTION pg_temp.uniform(key bigint, seed bigint) RETURNS double precision
    IMMUTABLE LANGUAGE sql
    AS $$ SELECT (hashint8extended(key, seed) & 16777215) / 16777216.0::double precision $$;

-- One row per sitting of a student in a test. Numbers from a billion on are the students of the
-- hours to measure, who stay the same however long the past is.
CREATE TEMPORARY TABLE sitting AS
WITH begun AS (
    SELECT k, k / %(tests_per_student)s AS student_id,
        %(start)s::timestamptz + pg_temp.uniform(k, 1)
            * (%(measured)s::timestamptz - interval '3 hours' - %(start)s::timestamptz) AS began
    FROM generate_series(0, %(past)s::bigint - 1) k
    UNION ALL
    SELECT 1000000000000 + k, 1000000000 + k / %(tests_per_student)s,
        %(measured)s::timestamptz - interval '3 hours'
            + pg_temp.uniform(1000000000000 + k, 1) * interval '27 hours'
    FROM generate_series(0, 27 * %(present)s::bigint - 1) k
), first_sitting AS (
    SELECT k, student_id,
        (student_id * 7 + k %% %(tests_per_student)s * (%(tests)s / %(tests_per_student)s))
            %% %(tests)s AS test_id,
        0 AS retake, began, interval '40 minutes' + pg_temp.uniform(k, 2) * interval '70 minutes'
            AS duration
    FROM begun
)
SELECT 2 * k AS sitting_id, * FROM first_sitting
UNION ALL
-- One in twenty takes the test again, half of the questions.
SELECT 2 * k + 1, k, student_id, test_id, 1, began + interval '150 minutes', duration / 2
FROM first_sitting
WHERE pg_temp.uniform(k, 3) < 0.05
    AND (k >= 1000000000000 OR began < %(measured)s::timestamptz - interval '6 hours');

INSERT INTO questions (question_id, correct_option)
SELECT q, chr(65 + (pg_temp.uniform(q, 4) * 4)::integer %% 4)
FROM generate_series(0, %(tests)s * 20 - 1) q WHERE pg_temp.uniform(q, 5) < 0.99;

-- A session expires before some of the slowest have finished; some never do, some are unknown.
INSERT INTO sessions (session_id, expiry_time)
SELECT sitting_id,
    CASE WHEN pg_temp.uniform(sitting_id, 6) < 0.95 THEN began + interval '100 minutes' END
FROM sitting WHERE pg_temp.uniform(sitting_id, 7) < 0.99;

CREATE TEMPORARY TABLE answer AS
WITH given AS (
    SELECT s.*, q, s.sitting_id * 32 + q AS seed, s.test_id * 20 + q AS question_id,
        s.began + (q + pg_temp.uniform(s.sitting_id * 32 + q, 8)) / 20.0 * s.duration AS "timestamp"
    FROM sitting s CROSS JOIN generate_series(0, 19) q
    WHERE pg_temp.uniform(s.sitting_id * 32 + q, 9) < CASE s.retake WHEN 0 THEN 0.92 ELSE 0.5 END
), with_revisits AS (
    SELECT seed, student_id, question_id, test_id, sitting_id, "timestamp" FROM given
    UNION ALL
    SELECT seed + 1000000000000000, student_id, question_id, test_id, sitting_id,
        "timestamp" + pg_temp.uniform(seed, 10) * (began + duration - "timestamp")
    FROM given WHERE pg_temp.uniform(seed, 11) < 0.08
)
SELECT row_number() OVER (ORDER BY "timestamp", seed) AS answer_id,
    student_id, question_id, test_id, sitting_id AS session_id,
    CASE WHEN pg_temp.uniform(seed, 12) < 0.99
        THEN chr(65 + (pg_temp.uniform(seed, 13) * 4)::integer %% 4) END AS submitted_option,
    "timestamp"
FROM with_revisits ORDER BY "timestamp", seed;

CREATE TEMPORARY TABLE submission AS
SELECT student_id, test_id, began + duration + interval '30 seconds' AS submit_time,
    CASE WHEN pg_temp.uniform(sitting_id, 14) < 0.85 THEN 'completed'
        WHEN pg_temp.uniform(sitting_id, 15) < 0.3 THEN 'Completed'
        WHEN pg_temp.uniform(sitting_id, 15) < 0.9 THEN 'abandoned' END AS completion_status
FROM sitting WHERE pg_temp.uniform(sitting_id, 16) < 0.95;

CREATE SCHEMA later;
CREATE TABLE later.answers AS
SELECT * FROM answer WHERE "timestamp" >= %(measured)s ORDER BY "timestamp", answer_id;
CREATE TABLE later.submissions AS
SELECT * FROM submission WHERE submit_time >= %(measured)s ORDER BY submit_time;

INSERT INTO answers
    (answer_id, student_id, question_id, test_id, session_id, submitted_option, "timestamp")
SELECT answer_id, student_id, question_id, test_id, session_id, submitted_option, "timestamp"
FROM answer WHERE "timestamp" < %(measured)s ORDER BY answer_id;
INSERT INTO submissions (student_id, test_id, submit_time, completion_status)
SELECT student_id, test_id, submit_time, completion_status
FROM submission WHERE submit_time < %(measured)s ORDER BY submit_time;

DROP TABLE sitting, answer, submission;
