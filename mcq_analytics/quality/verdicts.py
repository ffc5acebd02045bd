"""Verdicts of the checks: the hours over which a fact was found wrong, until it is found right.

A check's own history, which Dagster keeps, grows with every run; what is wrong now is asked here.
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
    """What a check found wrong over an hour, and the run that it belongs to."""

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
    """Keep what checks say of all hours of a window: by name of the check, an error or None."""
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
    """Return by fact the hours that are wrong, with the latest verdict on each."""
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
