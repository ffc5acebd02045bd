"""Groups hours into run requests: few ranges, a limit, failed windows halved. Pure functions.

The schedule and the sensors request these runs. Which hours are open is decided in `open_hours`.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from datetime import datetime
from itertools import groupby

from mcq_analytics.model.windows import HOUR, Window

HOURS_PER_RUN = 1_000
"""Hours per run of a long window. Longer runs would save little; they show less progress, and lose
more by a failure."""


def requests(
    wanted: AbstractSet[datetime],
    busy: AbstractSet[datetime],
    limit: int,
    per_run: int = HOURS_PER_RUN,
    failed: Mapping[datetime, Window] | None = None,
) -> list[Window]:
    """Return the windows of the runs that compute the wanted hours without the busy ones.

    They are in order. A run has at most `per_run` hours, all runs together at most `limit`. The
    newest of the hours is always among them: old hours that keep failing must not make the facts
    stale. Consecutive hours share a run if they lie in the same half of the same failed window
    (`failed`, see `FactHours.failed_windows`). Repeated failures thus isolate the bad hour.
    """
    hours = sorted(wanted - busy)
    chosen = hours[: limit - 1] + hours[limit - 1 :][-1:]
    windows: list[Window] = []

    def together(pair: tuple[int, datetime]) -> object:
        index, hour = pair
        return hour - index * HOUR, _half(hour, (failed or {}).get(hour))

    for _, pairs in groupby(enumerate(chosen), together):
        run = [hour for _, hour in pairs]
        windows += Window(run[0], run[-1] + HOUR).chunks(per_run)
    return windows


def _half(hour: datetime, failed: Window | None) -> Window | None:
    """Return the half of a failed window that contains an hour."""
    if failed is None or failed.hours == 1:
        return failed
    middle = failed.start + failed.hours // 2 * HOUR
    return Window(failed.start, middle) if hour < middle else Window(middle, failed.end)
