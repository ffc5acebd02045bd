-- The facts of the contestants in plain SQL, empty, with primary keys, in the schema `plain`.
CREATE SCHEMA plain;
CREATE TABLE plain.question_interaction_fact (
    student_id bigint,
    test_id bigint,
    question_id bigint,
    first_answer_time timestamptz NOT NULL,
    last_answer_time timestamptz NOT NULL,
    answer_count bigint NOT NULL,
    final_answer_option text,
    is_correct boolean,
    revisited boolean NOT NULL,
    time_spent double precision NOT NULL,
    PRIMARY KEY (student_id, test_id, question_id)
);
CREATE TABLE plain.test_summary_fact (
    student_id bigint,
    test_id bigint,
    total_questions bigint NOT NULL,
    questions_attempted bigint NOT NULL,
    correct_answers bigint NOT NULL,
    accuracy_percent double precision NOT NULL,
    time_spent double precision NOT NULL,
    PRIMARY KEY (student_id, test_id)
);
CREATE TABLE plain.test_funnel_fact (
    test_id bigint PRIMARY KEY,
    total_submissions bigint NOT NULL,
    completed_submissions bigint NOT NULL,
    incomplete_submissions bigint NOT NULL,
    completion_rate double precision NOT NULL,
    avg_submit_time double precision
);
