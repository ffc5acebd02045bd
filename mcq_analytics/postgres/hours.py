"""The hours of a fact as `etl_metadata` records them: done, failed or cancelled.

The attempts themselves are in `metadata`. SQL lays them over each other and returns ranges of
hours, so that years of history are read by the server and not sent.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from sqlalchemy import MetaData, text
from sqlalchemy.engine import Engine

from mcq_analytics.model.windows import HOUR, Window
from mcq_analytics.postgres.fact_tables import FAILED, SUCCESS, etl_metadata_table
from mcq_analytics.settings import Settings

ALL_FAILS = 3
"""If attempts over this many windows of a fact fail in a row, no single hour is to blame."""

# Ids grow in the order in which attempts end: the greatest is the latest. Consecutive hours with
# the same record have the same difference between hour and row number (gaps and islands).
_RANGES = """
    WITH hours AS (
        SELECT m.pipeline_name, h.hour,
            coalesce(max(m.id) FILTER (WHERE m.status = 'success'), 0) AS success,
            coalesce(max(m.id) FILTER (WHERE m.status = 'failed'), 0) AS failed,
            coalesce(max(m.id) FILTER (WHERE m.status = 'cancelled'), 0) AS cancelled
        FROM {etl_metadata} m CROSS JOIN LATERAL generate_series(
            m.window_start, m.window_end - interval '1 hour', interval '1 hour') AS h (hour)
        WHERE m.pipeline_name = ANY(:facts)
        GROUP BY m.pipeline_name, h.hour
    ), records AS (
        SELECT pipeline_name, hour, success > failed AS has_succeeded,
            CASE WHEN failed > success THEN failed END AS failed_id,
            cancelled > greatest(success, failed) AS is_cancelled
        FROM hours
    ), numbered AS (
        SELECT *, hour - interval '1 hour' * row_number() OVER (
            PARTITION BY pipeline_name, has_succeeded, failed_id, is_cancelled ORDER BY hour
        ) AS island
        FROM records
    ), islands AS (
        SELECT pipeline_name, has_succeeded, failed_id, is_cancelled,
            min(hour) AS first_hour, max(hour) + interval '1 hour' AS end_of_last
        FROM numbered
        GROUP BY pipeline_name, has_succeeded, failed_id, is_cancelled, island
    ), latest_success AS (
        SELECT pipeline_name, max(id) AS id FROM {etl_metadata} WHERE status = 'success'
        GROUP BY pipeline_name
    ), failed_since AS (
        SELECT m.pipeline_name, count(DISTINCT (m.window_start, m.window_end)) AS windows
        FROM {etl_metadata} m LEFT JOIN latest_success s USING (pipeline_name)
        WHERE m.status = 'failed' AND m.id > coalesce(s.id, 0)
        GROUP BY m.pipeline_name
    )
    SELECT i.pipeline_name, i.first_hour, i.end_of_last, i.has_succeeded, i.is_cancelled,
        f.window_start, f.window_end, f.error, f.finished_at,
        coalesce(s.windows, 0) AS failed_in_a_row
    FROM islands i
    LEFT JOIN {etl_metadata} f ON f.id = i.failed_id
    LEFT JOIN failed_since s ON s.pipeline_name = i.pipeline_name
    ORDER BY i.pipeline_name, i.first_hour
"""


@dataclass(frozen=True)
class FailedAttempt:
    """An attempt that failed: its window, when it ended, and its error in one line."""

    window: Window
    finished_at: datetime
    error: str | None


@dataclass(frozen=True)
class HourRange:
    """Consecutive hours with the same record.

    An attempt that somebody cancelled changes no hour: `has_succeeded` and `failed` are those of
    the latest attempt that was not cancelled. `is_cancelled` says that a later one was.
    """

    hours: Window
    has_succeeded: bool
    failed: FailedAttempt | None
    is_cancelled: bool

    @property
    def is_done(self) -> bool:
        """Whether the hours have succeeded, and no later attempt was cancelled."""
        return self.has_succeeded and not self.is_cancelled

    @property
    def is_open(self) -> bool:
        """Whether the hours have not succeeded, and no later attempt was cancelled."""
        return not self.has_succeeded and not self.is_cancelled

    @property
    def is_missing(self) -> bool:
        """Whether no attempt over the hours succeeded or failed: all were cancelled."""
        return not self.has_succeeded and self.failed is None


@dataclass(frozen=True)
class FactHours:
    """The hours that a fact was attempted over, in order, and how many windows failed in a row.

    Hours that were never attempted are in no range.
    """

    ranges: tuple[HourRange, ...] = ()
    failed_in_a_row: int = 0

    def open_hours(self, span: Window) -> set[datetime]:
        """Return the hours of `span` that are missing or failed, and were not cancelled."""
        found: set[datetime] = set()
        start = span.start
        for known in self.ranges:
            if known.is_open:
                continue
            found.update(_hours(start, min(known.hours.start, span.end)))
            start = max(start, known.hours.end)
        found.update(_hours(start, span.end))
        return found

    def done(self, hours: Iterable[datetime]) -> set[datetime]:
        """Return those of some hours that are done."""
        return {hour for hour in hours if (known := self._at(hour)) is not None and known.is_done}

    def cancelled(self, hours: Iterable[datetime]) -> set[datetime]:
        """Return those of some hours whose latest attempt was cancelled."""
        return {
            hour for hour in hours if (known := self._at(hour)) is not None and known.is_cancelled
        }

    def failed_windows(self) -> dict[datetime, Window]:
        """Return, by failed hour, the window that it failed in.

        Empty if everything fails: then the cause is not in these windows.
        """
        if self.failed_in_a_row >= ALL_FAILS:
            return {}
        return {
            hour: known.failed.window
            for known in self.ranges
            if known.failed is not None
            for hour in known.hours.starts()
        }

    def statuses(self) -> dict[datetime, str]:
        """Return, by hour, the status of the latest attempt that was not cancelled."""
        return {
            hour: SUCCESS if known.has_succeeded else FAILED
            for known in self.ranges
            if not known.is_missing
            for hour in known.hours.starts()
        }

    def succeeded_until(self, start: datetime) -> datetime:
        """Return the first hour, from `start` on, that has not succeeded."""
        for known in self.ranges:
            if known.has_succeeded and known.hours.start <= start < known.hours.end:
                start = known.hours.end
        return start

    def _at(self, hour: datetime) -> HourRange | None:
        index = bisect_right(self._starts, hour) - 1
        return self.ranges[index] if index >= 0 and hour < self.ranges[index].hours.end else None

    @cached_property
    def _starts(self) -> list[datetime]:
        return [known.hours.start for known in self.ranges]


def hours_of_facts(
    engine: Engine, settings: Settings, fact_names: Iterable[str]
) -> dict[str, FactHours]:
    """Return the hours of facts, by name.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: `etl_metadata` cannot be read.

    """
    table = etl_metadata_table(MetaData(schema=settings.fact_schema))
    statement = _RANGES.format(etl_metadata=engine.dialect.identifier_preparer.format_table(table))
    names = list(fact_names)
    ranges: dict[str, list[HourRange]] = {name: [] for name in names}
    failed_in_a_row = dict.fromkeys(names, 0)
    with engine.connect() as connection:
        # The planner expects a thousand hours of every attempt, and would compile the statement.
        connection.execute(text("SET LOCAL jit = off"))
        for row in connection.execute(text(statement), {"facts": names}):
            failed = None
            if row.window_start is not None:
                window = Window(row.window_start, row.window_end)
                failed = FailedAttempt(window, row.finished_at, row.error)
            hours = Window(row.first_hour, row.end_of_last)
            ranges[row.pipeline_name].append(
                HourRange(hours, row.has_succeeded, failed, row.is_cancelled)
            )
            failed_in_a_row[row.pipeline_name] = row.failed_in_a_row
    return {name: FactHours(tuple(ranges[name]), failed_in_a_row[name]) for name in names}


def _hours(start: datetime, end: datetime) -> Iterator[datetime]:
    return (start + index * HOUR for index in range(max(0, (end - start) // HOUR)))
