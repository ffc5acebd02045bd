"""Fingerprints: per hour, the count and hash sum of the base rows that facts were computed from.

An attempt stores those of its window, as of its snapshot, in the transaction that stores the facts.
An hour whose base rows now have another fingerprint is stale. This compares contents and no clocks,
so a change that commits while an attempt runs is neither missed nor computed twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import Connection, text

from mcq_analytics.compute.judged_answers import judged
from mcq_analytics.compute.templates import Templates
from mcq_analytics.model.windows import HOUR, Window
from mcq_analytics.postgres.identifiers import quoted
from mcq_analytics.postgres.inspection import BaseTables

EMPTY = "0:0"
"""The fingerprint of an hour without rows."""

Fingerprints = dict[datetime, dict[str, str]]
"""By hour and base table: `count:sum` of the 64-bit hashes of its rows, in any order."""

# The hash covers every value that a definition uses, also validity and the answer key: a changed
# expiry or key so changes the fingerprints of its answers' hours.
_ANSWERS = "SELECT {answer_columns} FROM {answers} a WHERE {answers_in_window}"
_ROWS = {
    "answers": """
        SELECT date_trunc('hour', "timestamp", 'UTC') AS hour, hash_record_extended(
            ROW(answer_id, student_id, test_id, question_id, submitted_option, "timestamp",
                is_valid, correct_option), 0) AS hash
        FROM judged
    """,
    "submissions": """
        SELECT date_trunc('hour', b.submit_time, 'UTC') AS hour, hash_record_extended(
            ROW(b.student_id, b.test_id, b.submit_time, b.completion_status), 0) AS hash
        FROM (SELECT {submission_columns} FROM {submissions} b WHERE {submissions_in_window}) b
    """,
}


def fingerprints(
    connection: Connection, base: BaseTables, window: Window, *, of_most: bool = False
) -> Fingerprints:
    """Return the fingerprints of every hour of a window, as the transaction sees it.

    The cost is a scan of the window in the indexes on the base tables' times. `of_most` says that
    it holds a large part of all answers.
    """
    found: Fingerprints = {hour: dict.fromkeys(_ROWS, EMPTY) for hour in window.starts()}
    for table in _ROWS:
        rows = connection.execute(
            text(fingerprint_statement(base, table, of_most=of_most)),
            {"window_start": window.start, "window_end": window.end},
        )
        for hour, fingerprint in rows:
            found[hour][table] = fingerprint
    return found


def fingerprint_statement(base: BaseTables, table: str, *, of_most: bool = False) -> str:
    """Return the query for `hour` and `fingerprint` of the hours that have rows.

    Parameters: `window_start` and `window_end`.
    """
    rows = _ROWS[table]
    if table == "answers":
        rows = f"WITH {judged(_ANSWERS, are_most=of_most)} {rows}"
    # The sum of bigints is numeric: it does not overflow.
    return (
        "SELECT hour, count(*) || ':' || sum(hash) AS fingerprint "
        f"FROM ({Templates(base, {}).fill(rows)}) r GROUP BY hour"
    )


def store_fingerprints(connection: Connection, schema: str, found: Fingerprints) -> None:
    """Store the fingerprints of hours, in the transaction that stores the facts."""
    connection.execute(
        text(
            f"INSERT INTO {quoted(schema, 'hour_fingerprint')} AS kept "
            "(hour, answers, submissions) "
            "SELECT hour, answers, submissions FROM unnest(CAST(:hours AS timestamptz[]), "
            "CAST(:answers AS text[]), CAST(:submissions AS text[])) "
            "AS r (hour, answers, submissions) "
            "ON CONFLICT (hour) DO UPDATE "
            "SET answers = EXCLUDED.answers, submissions = EXCLUDED.submissions "
            "WHERE (kept.answers, kept.submissions) "
            "IS DISTINCT FROM (EXCLUDED.answers, EXCLUDED.submissions)"
        ),
        {
            "hours": list(found),
            "answers": [tables["answers"] for tables in found.values()],
            "submissions": [tables["submissions"] for tables in found.values()],
        },
    )


def computed_hours(connection: Connection, schema: str) -> set[datetime]:
    """Return the hours over which the facts were ever computed."""
    statement = f"SELECT hour FROM {quoted(schema, 'hour_fingerprint')}"
    return set(connection.execute(text(statement)).scalars())


def watermark(connection: Connection, schema: str) -> datetime | None:
    """Return the end of the unbroken run of computed hours from the first one, if any."""
    kept = quoted(schema, "hour_fingerprint")
    statement = (
        f"SELECT min(hour) + interval '1 hour' FROM {kept} f WHERE NOT EXISTS "
        f"(SELECT 1 FROM {kept} n WHERE n.hour = f.hour + interval '1 hour')"
    )
    found: datetime | None = connection.execute(text(statement)).scalar()
    return found


def stale_hours(
    connection: Connection, base: BaseTables, schema: str, window: Window
) -> Fingerprints:
    """Return the fingerprints that have changed since they were stored, by hour and table.

    Only computed hours can be stale.
    """
    kept = _kept(connection, schema, window)
    if not kept:
        return {}
    now = fingerprints(connection, base, Window(min(kept), max(kept) + HOUR))
    changed = {
        hour: {
            table: fingerprint
            for table, fingerprint in now[hour].items()
            if fingerprint != tables.get(table)
        }
        for hour, tables in kept.items()
    }
    return {hour: tables for hour, tables in changed.items() if tables}


def stored_rows(connection: Connection, schema: str, window: Window) -> dict[datetime, int]:
    """Return how many base rows each computed hour of a window had, by its fingerprints."""
    return {
        hour: sum(int(one.partition(":")[0]) for one in tables.values() if one is not None)
        for hour, tables in _kept(connection, schema, window).items()
    }


def _kept(
    connection: Connection, schema: str, window: Window
) -> dict[datetime, Mapping[str, str | None]]:
    rows = connection.execute(
        text(
            f"SELECT hour, answers, submissions FROM {quoted(schema, 'hour_fingerprint')} "
            "WHERE hour >= :start AND hour < :end ORDER BY hour"
        ),
        {"start": window.start, "end": window.end},
    ).mappings()
    return {row["hour"]: {name: row[name] for name in _ROWS} for row in rows}
