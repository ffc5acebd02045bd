"""Where the three facts disagree with each other, or with what is stored beside them.

They must not in any snapshot, whatever runs or dies meanwhile (docs/spec.md §3). It is asked
without the base tables, so that a reader can ask all the time.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import sleep

from sqlalchemy import Connection, text
from sqlalchemy.exc import InterfaceError, OperationalError

from mcq_analytics.postgres.database import Database
from mcq_analytics_tests.tally import TALLY

# By what should hold: a query for what does not, one text per row.
_EXCEPTIONS = {
    "a summary counts its interactions": """
        SELECT concat_ws(' ', student_id, test_id, i.*, s.*) FROM (
            SELECT student_id, test_id, count(*) AS attempted,
                count(*) FILTER (WHERE is_correct) AS correct,
                extract(epoch FROM max(last_answer_time) - min(first_answer_time)) AS seconds
            FROM {schema}.question_interaction_fact GROUP BY student_id, test_id
        ) i FULL JOIN {schema}.test_summary_fact s USING (student_id, test_id)
        WHERE (i.attempted, i.correct, CAST(i.seconds AS float8)) IS DISTINCT FROM
            (s.questions_attempted, s.correct_answers, s.time_spent)
    """,
    "all summaries of a test have the number of its questions": """
        SELECT concat_ws(' ', s.student_id, s.test_id, s.total_questions, t.questions)
        FROM {schema}.test_summary_fact s LEFT JOIN (
            SELECT test_id, count(DISTINCT question_id) AS questions
            FROM {schema}.question_interaction_fact GROUP BY test_id
        ) t ON t.test_id = s.test_id
        WHERE s.total_questions IS DISTINCT FROM t.questions
    """,
    "a funnel is the sum of its students' submissions": """
        SELECT concat_ws(' ', f.*, t.*) FROM {schema}.test_funnel_fact f FULL JOIN (
            SELECT test_id, sum(submissions) AS submitted, sum(completed_submissions) AS completed,
                sum(timed_submissions) AS timed, sum(timed_microseconds) AS microseconds
            FROM {schema}.student_test_submissions GROUP BY test_id
        ) t ON t.test_id = f.test_id
        WHERE (f.total_submissions, f.completed_submissions, f.incomplete_submissions,
                f.timed_submissions, f.timed_microseconds,
                f.completion_rate, f.avg_submit_time)
            IS DISTINCT FROM (t.submitted, t.completed, t.submitted - t.completed,
                t.timed, t.microseconds,
                CAST(100 AS float8) * CAST(t.completed AS bigint) / CAST(t.submitted AS bigint),
                CAST(t.microseconds AS float8) / nullif(CAST(t.timed AS bigint), 0) / 1000000)
    """,
    # Hours may outlast the rows, until they run themselves.
    "a student's test with rows has active hours": """
        SELECT concat_ws(' ', student_id, test_id) FROM (
            SELECT student_id, test_id FROM {schema}.test_summary_fact
            UNION SELECT student_id, test_id FROM {schema}.student_test_submissions
            EXCEPT SELECT student_id, test_id FROM {schema}.student_test_hour
        ) without_hours
    """,
    "an attempt has a row per fact, all of one status": """
        SELECT concat_ws(' ', run_id, started_at, array_agg(pipeline_name || status))
        FROM {schema}.etl_metadata GROUP BY run_id, started_at
        HAVING count(*) <> 3 OR count(DISTINCT pipeline_name) <> 3 OR count(DISTINCT status) <> 1
    """,
    "at most one attempt is in progress, of all facts": """
        SELECT string_agg(concat_ws(' ', run_id, pipeline_name), ', ')
        FROM {schema}.running_attempt HAVING count(*) NOT IN (0, 3)
    """,
}


def disagreements(connection: Connection, schema: str = "analytics") -> list[str]:
    """Return what should hold in one snapshot and does not; none if the facts agree."""
    return [
        f"{what}: {row}"
        for what, query in _EXCEPTIONS.items()
        for row in connection.execute(text(query.format(schema=schema))).scalars()
    ]


def disagreements_now(database: Database) -> list[str]:
    """Return the disagreements in a snapshot of now."""
    with database.engine("reader").connect() as plain:
        connection = plain.execution_options(isolation_level="REPEATABLE READ")
        return disagreements(connection, database.fact_schema)


@contextmanager
def looking(database: Database) -> Iterator[None]:
    """Look all the time until the block ends, in a snapshot per look; nothing may be found.

    A look fails while the server is down, and does not count.
    """
    enough = threading.Event()
    found: list[str] = []
    raised: list[Exception] = []
    looks = 0

    def look() -> None:
        nonlocal looks
        while not (enough.is_set() or found or raised):
            try:
                found.extend(disagreements_now(database))
                looks += 1
            except (OperationalError, InterfaceError):
                sleep(0.2)
            except Exception as error:
                raised.append(error)
            # The runs need the processors, too.
            sleep(0.02)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join()
    TALLY["looks during runs"] += looks
    if raised:
        raise raised[0]
    assert not found, found
    assert looks > 0
