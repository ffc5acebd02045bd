"""Few tests of many students, made in plain SQL together with their facts; and what is read.

Every student has 20 questions in one of five tests, a hundred students in each hour. The hour to
run comes last: it has new students, and some of the past who answer again.
"""

from __future__ import annotations

from datetime import datetime
from time import sleep

from sqlalchemy import text

from mcq_analytics.model.windows import HOUR, Window, parse_hour
from mcq_analytics.postgres.database import Database
from mcq_analytics_tests.facts_of import TABLES, execute, scalar

START = parse_hour("2024-01-01T00")
TESTS, QUESTIONS, PER_HOUR = 5, 20, 100
NEW, OLD, AGAIN = 80, 20, 5
"""New students of the hour to run; those of the past, and how often each of these answers."""

_ANSWERS = """
    INSERT INTO answers SELECT n, n / 20, n / 20 % 5 * 20 + n % 20, n / 20 % 5, n / 20, 'A',
        timestamptz '{start}' + n / 2000 * interval '1 hour' + n % 2000 * interval '1 s'
    FROM generate_series({first} * 20, {end} * 20 - 1) n
"""
_SESSIONS = """
    INSERT INTO sessions SELECT s, timestamptz '{start}' + interval '1 year'
    FROM generate_series({first}, {end} - 1) s
"""
_SUBMISSIONS = """
    INSERT INTO submissions SELECT s, s % 5, timestamptz '{start}' + s / 100 * interval '1 hour'
        + (s % 100 * 20 + 20) * interval '1 s', 'completed'
    FROM generate_series({first}, {end} - 1) s
"""
_ANSWERS_AGAIN = """
    INSERT INTO answers SELECT {end} * 20 + n, s, s % 5 * 20 + n % 5, s % 5, s, 'B',
        timestamptz '{hour}' + interval '50 min' + n * interval '1 s'
    FROM generate_series(0, {old} * 5 - 1) n
    CROSS JOIN LATERAL (SELECT n / 5 * {students} / {old} AS s OFFSET 0) of_past
"""
_FACTS = (
    """
    INSERT INTO analytics.question_interaction_fact
    SELECT student_id, test_id, question_id, "timestamp", "timestamp", 1, 'A',
        question_id % 2 = 0, false, 0 FROM answers
    """,
    """
    INSERT INTO analytics.test_summary_fact
    SELECT student_id, test_id, 20, 20, 10, 50, 19 FROM submissions
    """,
    """
    INSERT INTO analytics.test_funnel_fact
    SELECT test_id, count(*), count(*), 0, 100, 20, now(), count(*), count(*) * 20000000
    FROM submissions GROUP BY test_id
    """,
    """
    INSERT INTO analytics.student_test_submissions
    SELECT test_id, student_id, 1, 1, 1, 20000000 FROM submissions
    """,
    """
    INSERT INTO analytics.student_test_hour
    SELECT date_trunc('hour', submit_time, 'UTC'), student_id, test_id FROM submissions
    """,
    """
    INSERT INTO analytics.hour_fingerprint
    SELECT DISTINCT hour, '2000:1', '100:1' FROM analytics.student_test_hour
    """,
)


def hour_after(students: int) -> Window:
    """Return the hour to run, after the hours of so many students."""
    start = START + students // PER_HOUR * HOUR
    return Window(start, start + HOUR)


def fill(database: Database, students: int) -> None:
    """Add the answers of students with their facts, and then those of the hour to run.

    Nothing is analyzed, by the server neither.
    """
    assert students % PER_HOUR == 0
    past = {"start": START, "first": 0, "end": students}
    now = {"start": START, "first": students, "end": students + NEW}
    execute(
        database,
        *(f"ALTER TABLE {name} SET (autovacuum_enabled = false)" for name in _tables(database)),
        "INSERT INTO questions SELECT q, CASE WHEN q % 2 = 0 THEN 'A' ELSE 'B' END "
        "FROM generate_series(0, 99) q",
        *(insert.format(**past) for insert in (_ANSWERS, _SESSIONS, _SUBMISSIONS)),
        *_FACTS,
        *(insert.format(**now) for insert in (_ANSWERS, _SESSIONS, _SUBMISSIONS)),
        _ANSWERS_AGAIN.format(**now, hour=hour_after(students).start, students=students, old=OLD),
    )


def _tables(database: Database) -> list[str]:
    found = scalar(
        database,
        "SELECT array_agg(schemaname || '.' || relname ORDER BY relname) FROM pg_stat_user_tables",
    )
    assert isinstance(found, list)
    return found


def touched_rows(database: Database, over: Window) -> int:
    """Return the number of answers and submissions of the students' tests in a window."""
    bounds = f"'{over.start}' AND '{over.end - datetime.resolution}'"
    touched = (
        f'(SELECT student_id, test_id FROM answers WHERE "timestamp" BETWEEN {bounds} '
        f"UNION SELECT student_id, test_id FROM submissions WHERE submit_time BETWEEN {bounds}) k"
    )
    counts = (
        f"SELECT (SELECT count(*) FROM answers JOIN {touched} USING (student_id, test_id)) + "
        f"(SELECT count(*) FROM submissions JOIN {touched} USING (student_id, test_id))"
    )
    return int(str(scalar(database, counts)))


def fetched(database: Database) -> dict[str, int]:
    """Return the rows that the server has fetched from each table so far, by scan or by index."""
    statement = text(
        "SELECT relname, coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0) "
        "FROM pg_stat_user_tables ORDER BY relname"
    )
    before: dict[str, int] = {}
    while True:
        # A session reports when it ends, or a second later.
        sleep(0.5)
        with database.engine("").connect() as connection:
            now = dict(connection.execute(statement).tuples().all())
        if now == before:
            return now
        before = now


def rows_since(database: Database, before: dict[str, int]) -> dict[str, int]:
    """Return the rows that were fetched since, by table."""
    now = fetched(database)
    assert set(TABLES) <= set(now)
    return {name: rows - before.get(name, 0) for name, rows in now.items() if rows}
