"""Rescoring on request: all hours that differ from the base tables, and the effect.

The late data sensor finds the same hours in time. `launching.in_process` computes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.exc import SQLAlchemyError

from mcq_analytics.compute.fingerprints import stale_hours
from mcq_analytics.errors import UsageError
from mcq_analytics.model.windows import Window, hours_so_far, ranges
from mcq_analytics.postgres.base_snapshot import snapshot_connection
from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.errors import explaining
from mcq_analytics.quality.corrections import Corrections, Moves
from mcq_analytics.settings import Settings

HOURS_AT_A_TIME = 1_000
BRIDGED = timedelta(hours=24)
"""Gaps up to this length are computed too: that is cheaper than another run."""


@dataclass(frozen=True)
class Rescore:
    """Windows to compute again, the number of hours in them that need it, and the effect."""

    windows: list[Window]
    stale_hours: int
    moves: Moves


def find_rescore(
    database: Database,
    settings: Settings,
    question: str | None,
    progress: Callable[[int], None] = lambda _: None,
) -> Rescore:
    """Compare the facts with the base tables, over all hours or those of one question.

    The answers of these hours are read once. `progress` is called with the number of
    hours compared since the last call.

    Raises:
        UsageError: the question does not exist: nobody answered it and it has no answer key.
        McqError: the database cannot be read.

    """
    with (
        explaining("comparing the facts with the base tables", SQLAlchemyError),
        snapshot_connection(database.engine(), database.source_schema) as (connection, base),
    ):
        corrections = Corrections(base, database.fact_schema)
        asked = None
        if question is not None:
            asked = corrections.hours_of_question(connection, question)
            if asked is None:
                raise UsageError(f"no question {question!r}: it has no answer key and no answers")
        stale: set[datetime] = set()
        for window in _windows_to_compare(settings, asked):
            found = stale_hours(connection, base, database.fact_schema, window)
            stale |= {hour for hour in found if asked is None or hour in asked}
            progress(window.hours)
        return Rescore(bridged(stale), len(stale), corrections.moves(connection, stale, question))


def bridged(hours: Iterable[datetime]) -> list[Window]:
    """Return windows that cover the hours and the short gaps between them, in order."""
    windows: list[Window] = []
    for window in ranges(hours):
        if windows and window.start - windows[-1].end <= BRIDGED:
            windows[-1] = Window(windows[-1].start, window.end)
        else:
            windows.append(window)
    return windows


def _windows_to_compare(settings: Settings, asked: set[datetime] | None) -> list[Window]:
    span = hours_so_far(settings.partition_start)
    if span is None:
        return []
    if asked is not None:
        found = bridged(hour for hour in asked if span.start <= hour < span.end)
    else:
        found = [span]
    return [chunk for window in found for chunk in window.chunks(HOURS_AT_A_TIME)]
