"""Windows: half-open UTC intervals of whole hours, and how they are read from text.

Dagster's partitions and their keys are in `definitions.partitions`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from mcq_analytics.errors import UsageError

HOUR = timedelta(hours=1)


@dataclass(frozen=True, order=True)
class Window:
    """The UTC interval ``[start, end)``, both on a whole hour, at least one hour long.

    Raises:
        UsageError: an end is off the hour, has no time zone, or does not follow the start.

    """

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        for moment in (self.start, self.end):
            require_whole_hour(moment)
        if self.end <= self.start:
            raise UsageError(
                f"the window ends at {format_hour(self.end)}, not after its start at "
                f"{format_hour(self.start)}: give an end that is later than the start"
            )

    @property
    def hours(self) -> int:
        """Number of hours that the window covers."""
        return (self.end - self.start) // HOUR

    def chunks(self, hours: int) -> Iterator[Window]:
        """Yield the window in pieces of at most `hours` hours, oldest first."""
        start = self.start
        while start < self.end:
            end = min(start + hours * HOUR, self.end)
            yield Window(start, end)
            start = end

    def __str__(self) -> str:
        return f"[{format_hour(self.start)}, {format_hour(self.end)})"


def ranges(hours: Iterable[datetime]) -> list[Window]:
    """Return hours as the fewest windows that hold just them, in order."""
    windows: list[Window] = []
    for hour in sorted(hours):
        if windows and windows[-1].end == hour:
            windows[-1] = Window(windows[-1].start, hour + HOUR)
        else:
            windows.append(Window(hour, hour + HOUR))
    return windows


def floor_hour(moment: datetime) -> datetime:
    """Return the whole UTC hour at or before an aware `moment`."""
    return moment.astimezone(timezone.utc).replace(minute=0, second=0, microsecond=0)


def last_closed_hour_end(now: datetime | None = None) -> datetime:
    """Return the end of the latest hour that is over: the present moment, floored."""
    return floor_hour(now or datetime.now(timezone.utc))


def format_hour(moment: datetime) -> str:
    """Return `moment` in UTC as ISO 8601, to the minute where it has no seconds."""
    utc = moment.astimezone(timezone.utc)
    precision = "seconds" if utc.second or utc.microsecond else "minutes"
    return utc.replace(tzinfo=None).isoformat(timespec=precision) + "Z"


def parse_time(text: str) -> datetime:
    """Return the moment that an ISO 8601 text names; UTC unless it carries an offset.

    Raises:
        UsageError: the text is not an ISO 8601 time.

    """
    try:
        moment = datetime.fromisoformat(text.strip().replace("Z", "+00:00").replace("z", "+00:00"))
    except ValueError:
        raise UsageError(
            f"{text!r} is not an ISO 8601 time: write it as 2024-01-31T09:00"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    try:
        return moment.astimezone(timezone.utc)
    except OverflowError:
        raise UsageError(f"{text!r} is out of range: years 1 to 9999 in UTC") from None


def parse_hour(text: str) -> datetime:
    """Return the whole UTC hour that an ISO 8601 text names.

    Raises:
        UsageError: the text is not a time, or not on an hour (the nearest hours are named).

    """
    moment = parse_time(text)
    require_whole_hour(moment)
    return moment


def require_whole_hour(moment: datetime) -> None:
    """Refuse a moment that is not a whole UTC hour.

    Raises:
        UsageError: it is not, or carries no time zone; the message names the nearest hours.

    """
    if moment.tzinfo is None:
        raise UsageError(f"{moment.isoformat()} has no time zone: windows are UTC")
    before = floor_hour(moment)
    if moment != before:
        raise UsageError(
            f"{format_hour(moment)} is not on an hour: the nearest are {format_hour(before)} "
            f"and {format_hour(before + HOUR)}"
        )
