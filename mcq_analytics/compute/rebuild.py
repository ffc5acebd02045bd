"""What an older version did not store, computed in plain SQL: submissions by student's test.

`init-db` calls it after a migration. Facts are kept; what spans students then agrees with what is
stored of each, so that runs can move it by differences.
"""

from __future__ import annotations

from sqlalchemy import Connection, text

from mcq_analytics.compute.handed_in import handed_in
from mcq_analytics.compute.templates import Templates
from mcq_analytics.model.facts import QUESTION_INTERACTION, TEST_FUNNEL, TEST_SUMMARY
from mcq_analytics.postgres.identifiers import quoted
from mcq_analytics.postgres.inspection import BaseTables

_IS_NEEDED = """
    SELECT EXISTS (SELECT 1 FROM {funnel}) AND NOT EXISTS (SELECT 1 FROM {stored})
"""

# Hours that were computed, now by any fact: what lies in others is left to their runs.
_STATEMENTS = (
    """
    INSERT INTO {hours} (hour, student_id, test_id)
    SELECT DISTINCT date_trunc('hour', {submit_time}, 'UTC'), {b.student_id}, {b.test_id}
    FROM {submissions} b
    WHERE {submission_has_keys} AND date_trunc('hour', {submit_time}, 'UTC') IN (
        SELECT h.hour FROM {attempts} m CROSS JOIN LATERAL generate_series(
            m.window_start, m.window_end - interval '1 hour', interval '1 hour') AS h (hour)
        WHERE m.status = 'success' AND m.pipeline_name = '{funnel_name}')
    ON CONFLICT DO NOTHING
    """,
    """
    CREATE TEMPORARY TABLE known_student_test ON COMMIT DROP AS
    SELECT DISTINCT student_id, test_id FROM {hours}
    """,
    "ANALYZE known_student_test",
    """
    INSERT INTO {stored} (student_id, test_id, submissions, completed_submissions,
        timed_submissions, timed_microseconds)
    WITH {handed_in} SELECT student_id, test_id, submissions, completed_submissions,
        timed_submissions, timed_microseconds FROM handed_in
    """,
    """
    DELETE FROM {funnel} WHERE test_id NOT IN (SELECT test_id FROM {stored})
    """,
    """
    INSERT INTO {funnel} AS f (test_id, total_submissions, completed_submissions,
        incomplete_submissions, completion_rate, avg_submit_time, timed_submissions,
        timed_microseconds)
    SELECT test_id, sum(submissions), sum(completed_submissions),
        sum(submissions - completed_submissions),
        CAST(100 AS float8) * CAST(sum(completed_submissions) AS bigint)
            / CAST(sum(submissions) AS bigint),
        CAST(sum(timed_microseconds) AS float8)
            / nullif(CAST(sum(timed_submissions) AS bigint), 0) / 1000000,
        sum(timed_submissions), sum(timed_microseconds)
    FROM {stored} GROUP BY test_id
    ON CONFLICT (test_id) DO UPDATE SET
        updated_at = CASE WHEN (f.total_submissions, f.completed_submissions, f.avg_submit_time)
            IS DISTINCT FROM (EXCLUDED.total_submissions, EXCLUDED.completed_submissions,
                EXCLUDED.avg_submit_time) THEN now() ELSE f.updated_at END,
        total_submissions = EXCLUDED.total_submissions,
        completed_submissions = EXCLUDED.completed_submissions,
        incomplete_submissions = EXCLUDED.incomplete_submissions,
        completion_rate = EXCLUDED.completion_rate,
        avg_submit_time = EXCLUDED.avg_submit_time,
        timed_submissions = EXCLUDED.timed_submissions,
        timed_microseconds = EXCLUDED.timed_microseconds
    """,
    """
    UPDATE {summaries} f SET total_questions = t.total_questions, updated_at = now()
    FROM (
        SELECT test_id, count(DISTINCT question_id) AS total_questions
        FROM {interactions} GROUP BY test_id
    ) t WHERE f.test_id = t.test_id AND f.total_questions <> t.total_questions
    """,
)


def rebuild_if_needed(connection: Connection, base: BaseTables, schema: str) -> bool:
    """Compute the submissions by student's test if the facts were stored without them.

    It reads the base tables as they are now, for the students' tests of computed hours, in the
    caller's transaction. Returns whether it was needed.
    """
    names = {
        "funnel": quoted(schema, TEST_FUNNEL.name),
        "funnel_name": TEST_FUNNEL.name,
        "summaries": quoted(schema, TEST_SUMMARY.name),
        "interactions": quoted(schema, QUESTION_INTERACTION.name),
        "stored": quoted(schema, "student_test_submissions"),
        "hours": quoted(schema, "student_test_hour"),
        "attempts": quoted(schema, "etl_metadata"),
    }
    templates = Templates(base, names)
    if not connection.execute(text(templates.fill(_IS_NEEDED))).scalar_one():
        return False
    of_known = templates.fill(handed_in("known_student_test"))
    for statement in _STATEMENTS:
        connection.execute(text(templates.fill(statement, handed_in=of_known)))
    return True
