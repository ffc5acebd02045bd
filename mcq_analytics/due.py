"""Which hours of which facts to request, as the fewest runs: pure decisions over statuses.

What the statuses are is read in `storage.metadata`, what is in progress in
`definitions.in_progress`; the schedule and the late data sensor request what comes out.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby

from mcq_analytics.storage.fact_tables import SUCCESS
from mcq_analytics.windows import HOUR, Window

HOURS_PER_RUN = 1_000
"""Hours of one Dagster run of a long window: enough that Spark's part is small beside Dagster's
records, few enough that progress shows and a failure costs little."""

HoursByFact = Mapping[str, AbstractSet[datetime]]


@dataclass(frozen=True)
class Request:
    """One run to ask for: a window, and the names of the facts to compute over it."""

    window: Window
    facts: tuple[str, ...]


def open_hours(
    statuses: Mapping[str, Mapping[datetime, str]], span: Window
) -> dict[str, set[datetime]]:
    """Return per fact the hours of `span` whose latest attempt is missing or failed."""
    hours = [span.start + index * HOUR for index in range(span.hours)]
    return {
        fact: {hour for hour in hours if found.get(hour) != SUCCESS}
        for fact, found in statuses.items()
    }


def requests(
    wanted: HoursByFact, busy: HoursByFact, limit: int, per_run: int = HOURS_PER_RUN
) -> list[Request]:
    """Return the runs that compute the wanted hours but not the busy ones, the oldest first.

    A run has at most `per_run` hours. At most `limit` hours are asked for; the newest is always
    among them, so that old hours that fail for ever do not keep the facts from being fresh.
    """
    facts_by_hour: dict[datetime, list[str]] = {}
    for fact, hours in wanted.items():
        for hour in hours - busy.get(fact, frozenset()):
            facts_by_hour.setdefault(hour, []).append(fact)
    hours_in_order = sorted(facts_by_hour)
    chosen = hours_in_order[: limit - 1] + hours_in_order[limit - 1 :][-1:]
    windows: list[Request] = []
    runs = groupby(
        enumerate(chosen), lambda pair: (pair[1] - pair[0] * HOUR, facts_by_hour[pair[1]])
    )
    for (_, facts), pairs in runs:
        run = [hour for _, hour in pairs]
        windows += [
            Request(chunk, tuple(facts)) for chunk in Window(run[0], run[-1] + HOUR).chunks(per_run)
        ]
    return windows
