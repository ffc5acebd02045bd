"""Attempts in `etl_metadata`: reads them, and records those that could not record themselves.

An attempt normally writes its own row, see `compute`. What the rows say about each hour is in
`hours`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import (
    MetaData,
    Table,
    and_,
    delete,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.engine import Engine

from mcq_analytics.errors import UsageError
from mcq_analytics.model.windows import (
    Window,
    format_hour,
    last_closed_hour_end,
    parse_hour,
    require_whole_hour,
)
from mcq_analytics.postgres.fact_tables import (
    CANCELLED,
    FAILED,
    SUCCESS,
    etl_metadata_table,
    running_attempt_table,
)
from mcq_analytics.postgres.hours import hours_of_facts
from mcq_analytics.settings import Settings

CANCELLED_TEXT = "somebody cancelled the run"


@dataclass(frozen=True)
class PastAttempt:
    """A row of `etl_metadata` (docs/spec.md §3). Times are UTC."""

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
    fact_names: Sequence[str],
    settings: Settings,
    start_override: datetime | str | None = None,
    end_override: datetime | str | None = None,
) -> tuple[datetime, datetime]:
    """Return the window to compute next for some facts, as `(start, end)` in UTC.

    An override wins. The default start is the first hour, from the partition start on, that has
    not succeeded for one of them; the default end is the end of the last closed hour. Both are
    equal if there is nothing to do.

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
        known = hours_of_facts(engine, settings, fact_names)
        start = min(hours.succeeded_until(settings.partition_start) for hours in known.values())
        if end_override is not None and end <= start:
            raise UsageError(
                f"all hours of {', '.join(fact_names)} before {format_hour(end)} have succeeded: "
                "give a start to compute them again"
            )
    return min(start, end), end


def record_ended(engine: Engine, settings: Settings, ended: Iterable[PastAttempt]) -> None:
    """Record attempts that failed or were cancelled and could not record that themselves.

    An attempt is left out if its run is recorded already, or if the fact was attempted again since.
    A failure is recorded even after a success of the same run. A run recorded as failed that was
    really cancelled is corrected. Its row in `running_attempt` goes: otherwise the next attempt,
    perhaps much later, would record the run once more.
    """
    metadata = MetaData(schema=settings.fact_schema)
    table, running = etl_metadata_table(metadata), running_attempt_table(metadata)
    with engine.begin() as connection:
        for attempt in ended:
            values = {
                "pipeline_name": attempt.pipeline_name,
                "window_start": attempt.window.start,
                "window_end": attempt.window.end,
                "status": attempt.status,
                "started_at": attempt.started_at,
                "finished_at": attempt.finished_at,
                "run_id": attempt.run_id,
                "error": attempt.error,
            }
            overlaps = and_(
                table.c.window_start < attempt.window.end, table.c.window_end > attempt.window.start
            )
            if attempt.status == CANCELLED:
                connection.execute(
                    update(table)
                    .where(
                        table.c.pipeline_name == attempt.pipeline_name,
                        table.c.run_id == attempt.run_id,
                        table.c.status == FAILED,
                    )
                    .values(status=CANCELLED)
                )
            connection.execute(
                delete(running).where(
                    running.c.pipeline_name == attempt.pipeline_name,
                    running.c.run_id == attempt.run_id,
                )
            )
            of_fact = and_(table.c.pipeline_name == attempt.pipeline_name, overlaps)
            of_run = (
                select(table.c.status)
                .where(of_fact, table.c.run_id == attempt.run_id)
                .order_by(table.c.id.desc())
                .limit(1)
                .scalar_subquery()
            )
            # Without a row of the run the comparison is null.
            is_known = of_run != SUCCESS if attempt.status == FAILED else of_run.is_not(None)
            known = or_(
                func.coalesce(is_known, False),
                exists().where(of_fact, table.c.finished_at > attempt.finished_at),
            )
            row = select(*(literal(value, table.c[name].type) for name, value in values.items()))
            connection.execute(insert(table).from_select(list(values), row.where(~known)))


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
