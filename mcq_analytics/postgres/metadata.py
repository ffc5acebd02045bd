"""Attempts in `etl_metadata`: reads them, and records those that could not record themselves.

An attempt normally writes its own row, see `compute`. What the rows say about each hour is in
`hours`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Insert,
    MetaData,
    Table,
    and_,
    case,
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
NOT_IN_DAGSTER_TEXT = (
    "the run ended after it had stored the facts, before Dagster had recorded all of them: nothing "
    "is lost, and the next run over these hours completes the record"
)


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
    A run that has stored the facts is recorded as failed, however it ended: Dagster does not know
    of its success. A run recorded as failed that was really cancelled is corrected. Its row in
    `running_attempt` goes: otherwise the next attempt, perhaps much later, would record the run
    once more.
    """
    metadata = MetaData(schema=settings.fact_schema)
    table, running = etl_metadata_table(metadata), running_attempt_table(metadata)
    with engine.begin() as connection:
        for attempt in ended:
            if attempt.status == CANCELLED:
                stored = table.alias()
                has_stored = exists().where(*_of_run(stored, attempt), stored.c.status == SUCCESS)
                connection.execute(
                    update(table)
                    .where(*_of_run(table, attempt), table.c.status == FAILED, ~has_stored)
                    .values(status=CANCELLED)
                )
            connection.execute(delete(running).where(*_of_run(running, attempt)))
            connection.execute(_insertion(table, attempt))


def _insertion(table: Table, attempt: PastAttempt) -> Insert:
    """Return the statement that records an attempt, unless it is known."""
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
    of_run = (
        select(table.c.status)
        .where(*_of_run(table, attempt), overlaps)
        .order_by(table.c.id.desc())
        .limit(1)
        .scalar_subquery()
    )
    since = exists().where(
        table.c.pipeline_name == attempt.pipeline_name,
        table.c.finished_at > attempt.finished_at,
        overlaps,
    )
    found: dict[str, ColumnElement[Any]] = {
        name: literal(value, table.c[name].type) for name, value in values.items()
    }
    is_stored = of_run == SUCCESS
    found["status"] = case((is_stored, FAILED), else_=found["status"])
    found["error"] = case((is_stored, NOT_IN_DAGSTER_TEXT), else_=found["error"])
    # Null, if there is no row of the run.
    is_known = or_(func.coalesce(of_run != SUCCESS, False), since)
    return insert(table).from_select(list(found), select(*found.values()).where(~is_known))


def _of_run(
    table: FromClause, attempt: PastAttempt
) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return table.c.pipeline_name == attempt.pipeline_name, table.c.run_id == attempt.run_id


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
