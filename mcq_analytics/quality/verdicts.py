"""Verdicts of the blocking checks: hours over which a fact is wrong, until it is found right.

Dagster keeps the history of every check, which only grows; this table holds what is wrong now.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text

from mcq_analytics.model.facts import Fact
from mcq_analytics.model.windows import Window
from mcq_analytics.postgres.identifiers import quoted


@dataclass(frozen=True)
class Verdict:
    """What a check found wrong over an hour, and in which run."""

    run_id: str
    error: str


def store_verdicts(
    connection: Connection,
    schema: str,
    fact: Fact,
    window: Window,
    *,
    run_id: str,
    verdicts: Mapping[str, str | None],
) -> None:
    """Store the verdicts on all hours of a window: an error, or None for right, by check name."""
    table = quoted(schema, "wrong_hour")
    bound = {"fact": fact.name, "start": window.start, "end": window.end, "run_id": run_id}
    for check, error in verdicts.items():
        connection.execute(
            text(
                f"DELETE FROM {table} WHERE pipeline_name = :fact AND check_name = :check "
                "AND hour >= :start AND hour < :end"
            ),
            {**bound, "check": check},
        )
        if error is not None:
            connection.execute(
                text(
                    f"INSERT INTO {table} (pipeline_name, check_name, hour, run_id, found_at, "
                    "error) SELECT :fact, :check, hour, :run_id, clock_timestamp(), :error "
                    "FROM generate_series(CAST(:start AS timestamptz), CAST(:end AS timestamptz) "
                    "- interval '1 hour', interval '1 hour') AS hours (hour)"
                ),
                {**bound, "check": check, "error": error},
            )


def wrong_hours(connection: Connection, schema: str) -> dict[str, dict[datetime, Verdict]]:
    """Return the wrong hours, by fact, with the latest verdict on each."""
    rows = connection.execute(
        text(
            "SELECT DISTINCT ON (pipeline_name, hour) pipeline_name, hour, run_id, error "
            f"FROM {quoted(schema, 'wrong_hour')} ORDER BY pipeline_name, hour, found_at DESC"
        )
    )
    found: dict[str, dict[datetime, Verdict]] = {}
    for fact, hour, run_id, error in rows:
        found.setdefault(fact, {})[hour] = Verdict(run_id, error)
    return found
