"""Fingerprints: per hour, the count and hash sum of the base rows that a fact was computed from.

An attempt stores those of its window, as of its snapshot, in the transaction that stores the fact.
An hour whose base rows now have another fingerprint is stale. This compares contents and no clocks,
so a change that commits while an attempt runs is neither missed nor computed twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import Connection, text

from mcq_analytics.compute.judged_answers import judged
from mcq_analytics.compute.templates import Templates
from mcq_analytics.model.facts import Fact
from mcq_analytics.model.windows import HOUR, Window
from mcq_analytics.postgres.identifiers import quoted
from mcq_analytics.postgres.inspection import BaseTables

EMPTY = "0:0"
"""The fingerprint of an hour without rows."""

Fingerprints = dict[datetime, dict[str, str]]
"""By hour and base table: `count:sum` of the 64-bit hashes of its rows, in any order."""

# The hash covers every value that a definition uses, also validity and the answer key: a changed
# expiry or key so changes the fingerprints of its answers' hours.
_ROWS = {
    "answers": "WITH "
    + judged("SELECT {answer_columns} FROM {answers} a WHERE {answers_in_window}")
    + """
        SELECT date_trunc('hour', "timestamp", 'UTC') AS hour, hash_record_extended(
            ROW(answer_id, student_id, test_id, question_id, submitted_option, "timestamp",
                is_valid, {key_used}), 0) AS hash
        FROM judged
    """,
    "submissions": """
        SELECT date_trunc('hour', b.submit_time, 'UTC') AS hour, hash_record_extended(
            ROW(b.student_id, b.test_id, b.submit_time, b.completion_status), 0) AS hash
        FROM (SELECT {submission_columns} FROM {submissions} b WHERE {submissions_in_window}) b
    """,
}


def fingerprints(
    connection: Connection, base: BaseTables, fact: Fact, window: Window
) -> Fingerprints:
    """Return the fingerprints of every hour of a window for a fact, as the transaction sees it.

    The cost is a scan of the window in the indexes on the base tables' times.
    """
    found: Fingerprints = {
        window.start + index * HOUR: dict.fromkeys(_tables(fact), EMPTY)
        for index in range(window.hours)
    }
    for table in _tables(fact):
        rows = connection.execute(
            text(fingerprint_statement(base, fact, table)),
            {"window_start": window.start, "window_end": window.end},
        )
        for hour, fingerprint in rows:
            found[hour][table] = fingerprint
    return found


def fingerprint_statement(base: BaseTables, fact: Fact, table: str) -> str:
    """Return the query for `hour` and `fingerprint` of the hours that have rows.

    Parameters: `window_start` and `window_end`.
    """
    keyed = "questions" in fact.reads
    rows = Templates(fact, base, {}).fill(
        _ROWS[table], key_used="correct_option" if keyed else "CAST(NULL AS text)"
    )
    return (
        "SELECT hour, count(*) || ':' || sum(CAST(hash AS numeric)) AS fingerprint "
        f"FROM ({rows}) r GROUP BY hour"
    )


def store_fingerprints(
    connection: Connection, schema: str, fact: Fact, found: Fingerprints
) -> None:
    """Store the fingerprints of hours, in the transaction that stores the fact."""
    connection.execute(
        text(
            f"INSERT INTO {quoted(schema, 'hour_fingerprint')} AS kept "
            "(pipeline_name, hour, answers, submissions) "
            "SELECT :fact, hour, answers, submissions FROM unnest(CAST(:hours AS timestamptz[]), "
            "CAST(:answers AS text[]), CAST(:submissions AS text[])) "
            "AS r (hour, answers, submissions) "
            "ON CONFLICT (pipeline_name, hour) DO UPDATE "
            "SET answers = EXCLUDED.answers, submissions = EXCLUDED.submissions "
            "WHERE (kept.answers, kept.submissions) "
            "IS DISTINCT FROM (EXCLUDED.answers, EXCLUDED.submissions)"
        ),
        {
            "fact": fact.name,
            "hours": list(found),
            "answers": [tables.get("answers") for tables in found.values()],
            "submissions": [tables.get("submissions") for tables in found.values()],
        },
    )


def computed_hours(connection: Connection, schema: str, fact: Fact) -> set[datetime]:
    """Return the hours over which a fact was ever computed."""
    statement = f"SELECT hour FROM {quoted(schema, 'hour_fingerprint')} WHERE pipeline_name = :fact"
    return set(connection.execute(text(statement), {"fact": fact.name}).scalars())


def watermark(connection: Connection, schema: str, fact: Fact) -> datetime | None:
    """Return the end of the unbroken run of computed hours from the fact's first one, if any."""
    kept = quoted(schema, "hour_fingerprint")
    statement = (
        f"SELECT min(hour) + interval '1 hour' FROM {kept} f WHERE pipeline_name = :fact "
        f"AND NOT EXISTS (SELECT 1 FROM {kept} n WHERE n.pipeline_name = f.pipeline_name "
        "AND n.hour = f.hour + interval '1 hour')"
    )
    found: datetime | None = connection.execute(text(statement), {"fact": fact.name}).scalar()
    return found


def stale_hours(
    connection: Connection, base: BaseTables, schema: str, fact: Fact, window: Window
) -> Fingerprints:
    """Return the fingerprints that have changed since the fact was computed, by hour and table.

    Only computed hours can be stale.
    """
    kept = _kept(connection, schema, fact, window)
    if not kept:
        return {}
    now = fingerprints(connection, base, fact, Window(min(kept), max(kept) + HOUR))
    changed = {
        hour: {
            table: fingerprint
            for table, fingerprint in now[hour].items()
            if fingerprint != tables.get(table)
        }
        for hour, tables in kept.items()
    }
    return {hour: tables for hour, tables in changed.items() if tables}


def _kept(
    connection: Connection, schema: str, fact: Fact, window: Window
) -> dict[datetime, Mapping[str, str | None]]:
    rows = connection.execute(
        text(
            f"SELECT hour, answers, submissions FROM {quoted(schema, 'hour_fingerprint')} "
            "WHERE pipeline_name = :fact AND hour >= :start AND hour < :end ORDER BY hour"
        ),
        {"fact": fact.name, "start": window.start, "end": window.end},
    ).mappings()
    return {row["hour"]: {name: row[name] for name in _ROWS} for row in rows}


def _tables(fact: Fact) -> list[str]:
    """Return the base tables with times that a fact reads."""
    return [table for table in _ROWS if table in fact.reads]
