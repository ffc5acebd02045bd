"""`etl_metadata` as it is read: past attempts, what they cover, and which window comes next.

Attempts write their own rows, see `attempts`; those that could not are recorded here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import MetaData, Table, and_, delete, exists, insert, literal, or_, select, update
from sqlalchemy.engine import Engine

from mcq_analytics.errors import UsageError
from mcq_analytics.model.windows import (
    Window,
    format_hour,
    last_closed_hour_end,
    parse_hour,
    ranges,
    require_whole_hour,
)
from mcq_analytics.postgres.fact_tables import (
    CANCELLED,
    FAILED,
    SUCCESS,
    etl_metadata_table,
    running_attempt_table,
)
from mcq_analytics.settings import Settings

CANCELLED_TEXT = "somebody cancelled the run"


@dataclass(frozen=True)
class PastAttempt:
    """A row of `etl_metadata` (SPEC section 3). Times are UTC."""

    pipeline_name: str
    window: Window
    status: str
    rows_read: int | None
    rows_written: int | None
    started_at: datetime
    finished_at: datetime
    run_id: str | None
    error: str | None


def latest_attempts(
    engine: Engine, pipeline_name: str, settings: Settings, limit: int
) -> list[PastAttempt]:
    """Return the latest attempts of a fact, newest first, whatever their status.

    Raises:
        UsageError: `limit` is less than 1.

    """
    if limit < 1:
        raise UsageError(f"limit is {limit}; it must be at least 1")
    table = _table(settings)
    statement = (
        select(table)
        .where(table.c.pipeline_name == pipeline_name)
        .order_by(table.c.finished_at.desc(), table.c.id.desc())
        .limit(limit)
    )
    return _attempts(engine, statement)


def next_window(
    engine: Engine,
    pipeline_name: str,
    settings: Settings,
    start_override: datetime | str | None = None,
    end_override: datetime | str | None = None,
) -> tuple[datetime, datetime]:
    """Return the window to compute next for a fact, as `(start, end)` in UTC.

    An override wins. The default start is the first hour, from the partition start on, that has
    not succeeded; the default end is the end of the last closed hour. Both are equal if there is
    nothing to do.

    Raises:
        UsageError: an override is off the hour or in the future, or the end is before the start.

    """
    closed = last_closed_hour_end()
    end = _hour(end_override) if end_override is not None else closed
    if end > closed:
        raise UsageError(
            f"{format_hour(end)} is in the future: the last hour that is over ends at "
            f"{format_hour(closed)}"
        )
    if start_override is not None:
        start = _hour(start_override)
        if end <= start:
            raise UsageError(
                f"the window ends at {format_hour(end)}, not after its start at "
                f"{format_hour(start)}: give an end that is later than the start"
            )
    else:
        start = _first_open_hour(engine, pipeline_name, settings)
        if end_override is not None and end <= start:
            raise UsageError(
                f"all hours of {pipeline_name} before {format_hour(end)} have succeeded: "
                "give a start to compute them again"
            )
    return min(start, end), end


@dataclass(frozen=True)
class HourRecord:
    """What `etl_metadata` says of an hour.

    `latest` is the latest attempt that was not cancelled, None where there is none: an hour keeps
    what it was when somebody stops an attempt over it. `is_cancelled` tells that the latest attempt
    of all was stopped.
    """

    latest: PastAttempt | None
    is_cancelled: bool

    @property
    def is_done(self) -> bool:
        """Whether the hour has succeeded, and nobody has cancelled another attempt since."""
        return self._has_succeeded and not self.is_cancelled

    @property
    def is_wanted(self) -> bool:
        """Whether the hour has not succeeded, and nobody has cancelled an attempt since."""
        return not self._has_succeeded and not self.is_cancelled

    @property
    def _has_succeeded(self) -> bool:
        return self.latest is not None and self.latest.status == SUCCESS


MISSING = HourRecord(None, False)
"""Of an hour that was never attempted."""

ALL_FAILS = 3
"""Where attempts over so many windows of a fact failed in a row, no single hour is to blame."""


@dataclass(frozen=True)
class FactRecord:
    """What `etl_metadata` says of a fact: its hours, and the windows that failed in a row."""

    hours: Mapping[datetime, HourRecord]
    failed_in_a_row: int

    def failed_windows(self) -> dict[datetime, Window]:
        """Return by failed hour the window that it failed in.

        None is to blame where everything fails: the cause then lies elsewhere.
        """
        if self.failed_in_a_row >= ALL_FAILS:
            return {}
        return {
            hour: record.latest.window
            for hour, record in self.hours.items()
            if record.latest is not None and record.latest.status == FAILED
        }


def fact_record(engine: Engine, pipeline_name: str, settings: Settings) -> FactRecord:
    """Return what is known of every hour that a fact was attempted over."""
    table = _table(settings)
    statement = select(table).where(table.c.pipeline_name == pipeline_name).order_by(table.c.id)
    return record_of(_attempts(engine, statement))


def record_of(attempts: Iterable[PastAttempt]) -> FactRecord:
    """Lay the attempts of a fact over each other, in their order: later ones are on top."""
    hours: dict[datetime, HourRecord] = {}
    failed: set[Window] = set()
    for attempt in attempts:
        is_cancelled = attempt.status == CANCELLED
        if attempt.status == SUCCESS:
            failed.clear()
        elif not is_cancelled:
            failed.add(attempt.window)
        for hour in attempt.window.starts():
            before = hours.get(hour, MISSING)
            hours[hour] = HourRecord(before.latest if is_cancelled else attempt, is_cancelled)
    return FactRecord(hours, len(failed))


def hour_statuses(engine: Engine, pipeline_name: str, settings: Settings) -> dict[datetime, str]:
    """Return by hour the status of the latest attempt of a fact that was not cancelled."""
    hours = fact_record(engine, pipeline_name, settings).hours
    return {hour: one.latest.status for hour, one in hours.items() if one.latest is not None}


def record_ended(engine: Engine, settings: Settings, ended: Iterable[PastAttempt]) -> None:
    """Record attempts that failed or were cancelled and could not record it themselves, each once.

    Left out are those that are known by their run, or after which the fact was attempted again. A
    run that is known as failed, and was cancelled, is put right. The notice that such an attempt is
    under way is withdrawn: else the next attempt, which may be long in coming, would record it.
    """
    metadata = MetaData(schema=settings.fact_schema)
    table, running = etl_metadata_table(metadata), running_attempt_table(metadata)
    with engine.begin() as connection:
        for failure in ended:
            values = {
                "pipeline_name": failure.pipeline_name,
                "window_start": failure.window.start,
                "window_end": failure.window.end,
                "status": failure.status,
                "started_at": failure.started_at,
                "finished_at": failure.finished_at,
                "run_id": failure.run_id,
                "error": failure.error,
            }
            overlaps = and_(
                table.c.window_start < failure.window.end, table.c.window_end > failure.window.start
            )
            if failure.status == CANCELLED:
                connection.execute(
                    update(table)
                    .where(
                        table.c.pipeline_name == failure.pipeline_name,
                        table.c.run_id == failure.run_id,
                        table.c.status == FAILED,
                    )
                    .values(status=CANCELLED)
                )
            connection.execute(
                delete(running).where(
                    running.c.pipeline_name == failure.pipeline_name,
                    running.c.run_id == failure.run_id,
                )
            )
            known = exists().where(
                table.c.pipeline_name == failure.pipeline_name,
                or_(
                    and_(table.c.run_id == failure.run_id, overlaps),
                    and_(table.c.finished_at > failure.finished_at, overlaps),
                ),
            )
            row = select(*(literal(value, table.c[name].type) for name, value in values.items()))
            connection.execute(insert(table).from_select(list(values), row.where(~known)))


def _first_open_hour(engine: Engine, pipeline_name: str, settings: Settings) -> datetime:
    statuses = hour_statuses(engine, pipeline_name, settings)
    done = ranges(hour for hour, status in statuses.items() if status == SUCCESS)
    first = settings.partition_start
    return next((window.end for window in done if window.start <= first < window.end), first)


def _hour(moment: datetime | str) -> datetime:
    if isinstance(moment, str):
        return parse_hour(moment)
    require_whole_hour(moment)
    return moment


def _table(settings: Settings) -> Table:
    return etl_metadata_table(MetaData(schema=settings.fact_schema))


def _attempts(engine: Engine, statement: object) -> list[PastAttempt]:
    with engine.connect() as connection:
        rows = connection.execute(statement).mappings()  # type: ignore[call-overload]
        return [
            PastAttempt(
                window=Window(row["window_start"], row["window_end"]),
                **{
                    name: row[name] for name in PastAttempt.__dataclass_fields__ if name != "window"
                },
            )
            for row in rows
        ]
