-- The rows of the hours to measure that have come until a time.
INSERT INTO answers
    (answer_id, student_id, question_id, test_id, session_id, submitted_option, "timestamp")
SELECT answer_id, student_id, question_id, test_id, session_id, submitted_option, "timestamp"
FROM later.answers WHERE "timestamp" < %(until)s ORDER BY answer_id;
INSERT INTO submissions (student_id, test_id, submit_time, completion_status)
SELECT student_id, test_id, submit_time, completion_status
FROM later.submissions WHERE submit_time < %(until)s ORDER BY submit_time;
