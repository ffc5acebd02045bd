"""Windows: half-open UTC intervals of whole hours; and parsing times from text.

Dagster's partitions and their keys are in `definitions.partitions`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from mcq_analytics.errors import UsageError

HOUR = timedelta(hours=1)
SHOWN_CHARACTERS = 80

# Patterns of our own: what `datetime.fromisoformat` accepts depends on the version of Python.
_YEAR, _MONTH, _DAY = r"(?P<year>[0-9]{4})", r"(?P<month>[0-9]{2})", r"(?P<day>[0-9]{2})"
_HOUR, _MINUTE = r"(?P<hour>[0-9]{2})", r"(?P<minute>[0-9]{2})"
_SECOND = r"(?P<second>[0-9]{2})(?:[.,](?P<fraction>[0-9]+))?"
_OFFSET = r"(?P<offset>[Zz]|[+-][0-9]{2}(?::?[0-9]{2})?)?"
_EXTENDED = re.compile(rf"{_YEAR}-{_MONTH}-{_DAY}[Tt ]{_HOUR}:{_MINUTE}(?::{_SECOND})?{_OFFSET}")
_BASIC = re.compile(rf"{_YEAR}{_MONTH}{_DAY}[Tt]{_HOUR}{_MINUTE}(?:{_SECOND})?{_OFFSET}")
_TO_THE_HOUR = re.compile(rf"{_YEAR}-{_MONTH}-{_DAY}(?:[Tt ]{_HOUR}{_OFFSET})?")


@dataclass(frozen=True, order=True)
class Window:
    """The UTC interval ``[start, end)`` of one or more whole hours.

    >>> Window(parse_hour("2024-01-01T09:00"), parse_hour("2024-01-01T11:00")).hours
    2

    Raises:
        UsageError: a bound is off the hour or has no time zone, or the end is not after the start.

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

    def starts(self) -> Iterator[datetime]:
        """Yield the start of each hour of the window."""
        for index in range(self.hours):
            yield self.start + index * HOUR

    def chunks(self, hours: int) -> Iterator[Window]:
        """Yield consecutive parts of at most `hours` hours, oldest first."""
        start = self.start
        while start < self.end:
            end = min(start + hours * HOUR, self.end)
            yield Window(start, end)
            start = end

    def __str__(self) -> str:
        return f"[{format_hour(self.start)}, {format_hour(self.end)})"


def ranges(hours: Iterable[datetime]) -> list[Window]:
    """Return the fewest windows that cover exactly these hours, in order."""
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
    """Return the end of the last closed hour: the present moment, rounded down to the hour."""
    return floor_hour(now or datetime.now(timezone.utc))


def hours_so_far(first: datetime) -> Window | None:
    """Return the closed hours from `first` on, or None if there are none yet."""
    closed = last_closed_hour_end()
    return Window(first, closed) if first < closed else None


def format_hour(moment: datetime) -> str:
    """Return `moment` in UTC as ISO 8601, without seconds if they are zero."""
    utc = moment.astimezone(timezone.utc)
    precision = "seconds" if utc.second or utc.microsecond else "minutes"
    return utc.replace(tzinfo=None).isoformat(timespec=precision) + "Z"


def parse_time(text: str) -> datetime:
    """Return a time given on the command line or in a setting, in UTC.

    Like `parse_timestamp`, but minutes, or the whole time of day, may be left out.

    Raises:
        UsageError: the text is not an ISO 8601 time, or no such moment exists.

    """
    return _moment(text, (_EXTENDED, _BASIC, _TO_THE_HOUR))


def parse_timestamp(text: str) -> datetime:
    """Return the time that an ISO 8601 date and time denote; UTC unless it has an offset.

    Digits beyond microseconds are rounded as PostgreSQL does. Dates alone, numbers of seconds, and
    weeks or days of the year are refused: guessing their meaning could be off by years.

    Raises:
        UsageError: the text is not such a time, or no such moment exists.

    """
    return _moment(text, (_EXTENDED, _BASIC))


def shown(text: str) -> str:
    """Return a text for an error message: quoted, in one line, and cut if it is long."""
    return repr(text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…")


def _moment(text: str, forms: tuple[re.Pattern[str], ...]) -> datetime:
    matches = (form.fullmatch(text.strip(" \t\r\n")) for form in forms)
    match = next((match for match in matches if match), None)
    try:
        if match is None:
            raise ValueError(text)
        part = match.groupdict()
        year, month, day, hour, minute, second = (
            int(part.get(unit) or 0)
            for unit in ("year", "month", "day", "hour", "minute", "second")
        )
        local = datetime(year, month, day, hour, minute, second, tzinfo=_zone(part["offset"]))
    except ValueError:
        raise UsageError(
            f"{shown(text)} is not an ISO 8601 time: write it as 2024-01-31T09:00"
        ) from None
    # As PostgreSQL does: the same double, rounded to the nearest integer, halves to even.
    microseconds = round(float(f"0.{part.get('fraction') or 0}") * 1_000_000)
    try:
        return (local + timedelta(microseconds=microseconds)).astimezone(timezone.utc)
    except OverflowError:
        raise UsageError(f"{shown(text)} is out of range: years 1 to 9999 in UTC") from None


def _zone(offset: str | None) -> timezone:
    """Return the time zone of an offset; UTC if there is none.

    Raises:
        ValueError: the offset is a day or more, or has more than 59 minutes.

    """
    if offset is None or offset in "Zz":
        return timezone.utc
    minutes = int(offset[-2:]) if len(offset) > 3 else 0
    if minutes > 59:
        raise ValueError(offset)
    size = timedelta(hours=int(offset[1:3]), minutes=minutes)
    return timezone(-size if offset[0] == "-" else size)


def parse_hour(text: str) -> datetime:
    """Return the whole UTC hour that an ISO 8601 text denotes.

    Raises:
        UsageError: the text is not a time, or is off the hour; the message names the nearest hours.

    """
    moment = parse_time(text)
    require_whole_hour(moment)
    return moment


def require_whole_hour(moment: datetime) -> None:
    """Refuse a moment that is not a whole UTC hour.

    Raises:
        UsageError: it is off the hour, or has no time zone; the message names the nearest hours.

    """
    if moment.tzinfo is None:
        raise UsageError(f"{moment.isoformat()} has no time zone: windows are UTC")
    before = floor_hour(moment)
    if moment != before:
        raise UsageError(
            f"{format_hour(moment)} is not on an hour: the nearest are {format_hour(before)} "
            f"and {format_hour(before + HOUR)}"
        )
