"""The statements of the audits, in plain SQL: what rows should be, and which stored rows differ.

`audits` executes them. Their fields are those of `compute.templates`, and further ones.
"""

from __future__ import annotations

from collections.abc import Mapping

from mcq_analytics.model.facts import QUESTION_INTERACTION, TEST_FUNNEL, TEST_SUMMARY

# Some of the students' tests that the window touches, in a temporary table: they are found once for
# all facts that are audited in a snapshot.
SAMPLE_OF_WINDOW = """
    CREATE TEMPORARY TABLE {name} ON COMMIT DROP AS
    SELECT * FROM ({touched}) touched
    ORDER BY hash_record_extended(ROW(student_id, test_id), :seed) LIMIT :sample
"""

ANSWERS = "SELECT {answer_columns} FROM {sample} k {answers_of_key} WHERE {answer_has_keys}"

# What the rows of the sample should be, by the name of their table: common table expressions, the
# last of which is `expected`.
EXPECTED: Mapping[str, str] = {
    QUESTION_INTERACTION.name: """
    {judged}, expected AS (
        SELECT student_id, test_id, question_id, first_answer_time, last_answer_time,
            answer_count, final_answer_option, is_correct,
            answer_count > 1 AS revisited,
            extract(epoch FROM last_answer_time - first_answer_time) AS time_spent
        FROM ({outcomes}) o
    )""",
    # The totals follow from the stored interactions of all students.
    TEST_SUMMARY.name: """
    {judged}, totals AS MATERIALIZED ({totals}), expected AS (
        SELECT o.student_id, o.test_id, t.total_questions,
            count(*) AS questions_attempted,
            count(*) FILTER (WHERE o.is_correct) AS correct_answers,
            100.0 * count(*) FILTER (WHERE o.is_correct) / count(*) AS accuracy_percent,
            extract(epoch FROM max(o.last_answer_time) - min(o.first_answer_time)) AS time_spent
        FROM ({outcomes}) o LEFT JOIN totals t ON t.test_id = o.test_id
        GROUP BY o.student_id, o.test_id, t.total_questions
    )""",
    TEST_FUNNEL.name: "{handed_in}, expected AS (SELECT * FROM handed_in)",
}

DIFFERENT_ROWS = """
    WITH {expected}, actual AS (
        SELECT f.* FROM {sample} k CROSS JOIN LATERAL (
            SELECT * FROM {table} f
            WHERE f.student_id = k.student_id AND f.test_id = k.test_id OFFSET 0
        ) f
    )
    SELECT CAST(ROW({key}) AS text) AS key, student_id, test_id
    FROM actual FULL JOIN expected USING ({key})
    WHERE actual.test_id IS NULL OR expected.test_id IS NULL OR {different}
"""

# The funnel of some tests, against the sum of what is stored of each student: of small tests until
# their rows are enough, and of one test of any size, if it is drawn.
DIFFERENT_SUMS = """
    WITH counted AS (
        SELECT t.test_id, coalesce(f.total_submissions, 0) AS size
        FROM (SELECT DISTINCT test_id FROM {sample}) t LEFT JOIN LATERAL (
            SELECT * FROM {table} f WHERE f.test_id = t.test_id OFFSET 0
        ) f ON true
    ), tests AS MATERIALIZED (
        SELECT test_id FROM (
            SELECT test_id, size, sum(size) OVER (ORDER BY size, test_id) AS up_to_here,
                row_number() OVER (ORDER BY hashtext(concat(test_id, :seed)), test_id) AS place
            FROM counted
        ) s WHERE up_to_here <= :summed OR (place = 1 AND size * :draw < :summed)
    ), expected AS (
        SELECT t.test_id, {sums} FROM tests t CROSS JOIN LATERAL (
            SELECT {counts} FROM {stored} s WHERE s.test_id = t.test_id HAVING count(*) > 0
        ) s
    ), actual AS (
        SELECT f.* FROM tests t
        CROSS JOIN LATERAL (SELECT * FROM {table} f WHERE f.test_id = t.test_id OFFSET 0) f
    )
    SELECT CAST(ROW(test_id) AS text) FROM actual FULL JOIN expected USING (test_id)
    WHERE actual.total_submissions IS NULL OR expected.total_submissions IS NULL OR {different}
"""
SUMS = {
    "total_submissions": "submissions",
    "completed_submissions": "completed_submissions",
    "incomplete_submissions": "submissions - completed_submissions",
    "completion_rate": "100.0 * completed_submissions / submissions",
    "avg_submit_time": "timed_microseconds / nullif(timed_submissions, 0) / 1000000",
    "timed_submissions": "timed_submissions",
    "timed_microseconds": "timed_microseconds",
}

HOURS_OF_STUDENT_TESTS = """
    WITH k AS MATERIALIZED (
        SELECT * FROM unnest({students}, {tests}) AS k (student_id, test_id)
    )
    SELECT DISTINCT date_trunc('hour', {answer_time}, 'UTC') AS hour, k.student_id, k.test_id
    FROM k {answers_of_key} WHERE {answer_has_keys}
    UNION SELECT DISTINCT date_trunc('hour', {submit_time}, 'UTC'), k.student_id, k.test_id
    FROM k {submissions_of_key} WHERE {submission_has_keys}
"""

REFERENCES: Mapping[str, str] = {
    QUESTION_INTERACTION.name: """
        WITH w AS MATERIALIZED (
            SELECT a.question_id, a.session_id, count(*) AS answers,
                grouping(a.question_id) = 0 AS is_question
            FROM {answers} a WHERE {answers_in_window}
            GROUP BY GROUPING SETS ((a.question_id), (a.session_id))
        )
        SELECT (
            SELECT CAST(coalesce(sum(answers), 0) AS bigint) FROM w a
            WHERE a.is_question AND a.question_id IS NOT NULL AND NOT EXISTS (
                SELECT 1 FROM {questions} q WHERE q.question_id = {a.question_id})
        ) AS answers_without_question, (
            SELECT CAST(coalesce(sum(answers), 0) AS bigint) FROM w a
            WHERE NOT a.is_question AND NOT EXISTS (
                SELECT 1 FROM {sessions} s WHERE s.session_id = {a.session_id})
        ) AS answers_without_session
    """,
    TEST_FUNNEL.name: """
        SELECT count(*) AS submissions_without_answer FROM {submissions} b
        WHERE {submissions_in_window} AND {submission_has_keys} AND NOT EXISTS (
            SELECT 1 FROM {answers} a
            WHERE a.student_id = {b.student_id} AND a.test_id = {b.test_id})
    """,
}
