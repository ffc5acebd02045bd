"""Storage of the Dagster instance's records: PostgreSQL, by default the embedded server.

`dagster.yaml` names `InstanceStorage`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from dagster import DagsterEventType, EventLogEntry
from dagster_postgres import (
    DagsterPostgresStorage,
    PostgresEventLogStorage,
    PostgresRunStorage,
    PostgresScheduleStorage,
)
from dagster_postgres.utils import set_pg_statement_timeout
from sqlalchemy import create_engine, event, literal_column
from sqlalchemy.engine import URL, Engine
from sqlalchemy.pool import NullPool

from mcq_analytics.instance.console import set_up_log_lines
from mcq_analytics.postgres.database import CONNECT_TIMEOUT_SECONDS, sqlalchemy_text
from mcq_analytics.postgres.embedded import DAGSTER_DATABASE, embedded_url, keep_started
from mcq_analytics.settings import Settings, load_settings

EVENTS_PER_BATCH = "1000"
CONNECTIONS_KEPT = 2
"""Connections per process and pool that stay open to the records; more are opened as needed."""

Part = TypeVar("Part", PostgresRunStorage, PostgresEventLogStorage, PostgresScheduleStorage)


class _Pooled:
    """A part of the storage on an engine that it is given.

    In the webserver Dagster would give each part another one, which neither replaces lost
    connections nor starts the embedded server.
    """

    _engine: Engine

    def optimize_for_webserver(
        self,
        statement_timeout: int,
        pool_recycle: int,
        max_overflow: int,
    ) -> None:
        """Limit the time of each statement, in milliseconds."""

        def limit(connection: Any, _: object) -> None:
            set_pg_statement_timeout(connection, statement_timeout)

        event.listen(self._engine, "connect", limit)
        self._engine.dispose()


class RunStorage(_Pooled, PostgresRunStorage):
    """Stores runs."""


class ScheduleStorage(_Pooled, PostgresScheduleStorage):
    """Stores the ticks of schedules and sensors."""


class BatchingEventLogStorage(_Pooled, PostgresEventLogStorage):
    """Stores the planned materializations of a ranged run in one insert.

    A ranged run plans one event per fact and hour. The base class inserts them one by one, which
    costs more than all other records of the run.
    """

    def store_event_batch(self, events: Sequence[EventLogEntry]) -> None:
        """Store the planned hours in one insert, and other events as the base class does."""
        hours = [event for event in events if _plans_an_hour(event)]
        if hours:
            self._store_planned_hours(hours)
        others = [event for event in events if not _plans_an_hour(event)]
        if others:
            super().store_event_batch(others)

    def _store_planned_hours(self, events: Sequence[EventLogEntry]) -> None:
        statement = self.prepare_insert_event_batch(events).returning(literal_column("id"))
        with self._connect() as connection:
            ids = [row[0] for row in connection.execute(statement)]
        latest = {
            event.get_dagster_event().asset_key: (event, event_id)
            for event, event_id in zip(events, ids, strict=True)
        }
        with self.index_transaction() as connection:
            for event, event_id in latest.values():
                self._store_asset_event(connection, event, event_id)

    def store_asset_check_event(self, event: EventLogEntry, event_id: int | None) -> None:
        """Store a check when it is evaluated, but not when it is planned.

        Dagster shows the row that was inserted last. With several queued runs that would be the
        check that was planned last, not the one evaluated last. There would also be a row for each
        hour of a run, although the checks have no partitions.
        """
        planned = DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED
        if event.get_dagster_event().event_type is not planned:
            super().store_asset_check_event(event, event_id)

    def dispose(self) -> None:
        """Close all connections; a later use opens new ones."""
        super().dispose()
        self._engine.dispose()


def records_url(settings: Settings) -> URL:
    """Return the URL of the database for Dagster's records; start the embedded server if needed.

    Raises:
        McqError: the embedded server does not start.

    """
    if settings.dagster_url is not None:
        return settings.dagster_url
    return embedded_url(settings.home, DAGSTER_DATABASE)


def connect_to_records(settings: Settings) -> None:
    """Connect once to the records, if they are on a server of their own.

    Dagster itself would retry for many seconds, and its error names no setting.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: the server cannot be reached.

    """
    if settings.dagster_url is not None:
        url = sqlalchemy_text(settings.dagster_url)
        timeout = {"connect_timeout": CONNECT_TIMEOUT_SECONDS}
        create_engine(url, poolclass=NullPool, connect_args=timeout).connect().close()


def _plans_an_hour(event: EventLogEntry) -> bool:
    planned = DagsterEventType.ASSET_MATERIALIZATION_PLANNED
    return event.get_dagster_event().event_type is planned


class InstanceStorage(DagsterPostgresStorage):
    """Dagster's PostgreSQL storage, at `MCQ_DAGSTER_URL` or on the embedded server.

    Its parts share pools of connections, and lost ones are replaced. Dagster itself would connect
    for each event, and a step writes dozens of them.

    On the embedded server only commits of the runs wait for the disk. They bring along all earlier
    ones, so that no run whose end was seen runs again after a crash, and blocks others. A crash may
    lose the last events of a run in progress, but nothing of the facts, which are in another
    database.
    """

    def __init__(self, inst_data: Any = None) -> None:
        os.environ.setdefault("DAGSTER_EVENT_BATCH_SIZE", EVENTS_PER_BATCH)
        if "DAGSTER_IS_DEV_CLI" in os.environ:
            set_up_log_lines()
        settings = load_settings()
        url = records_url(settings)
        # Creates the tables.
        super().__init__(sqlalchemy_text(url), inst_data=inst_data)
        runs = others = _engine(url, settings)
        if settings.dagster_url is None:
            others = _engine(
                url.update_query_dict({"options": "-c synchronous_commit=off"}), settings
            )
        self._run_storage = _on(runs, RunStorage)
        self._event_log_storage = _on(others, BatchingEventLogStorage)
        self._schedule_storage = _on(others, ScheduleStorage)

    @classmethod
    def config_type(cls) -> Any:
        """Return the schema of its configuration in `dagster.yaml`: none, and no secret."""
        return {}

    @classmethod
    def from_config_value(cls, inst_data: Any, config_value: Mapping[str, Any]) -> InstanceStorage:
        """Return the storage, at the URL that the settings choose."""
        return cls(inst_data)


def _engine(url: URL, settings: Settings) -> Engine:
    engine = create_engine(
        sqlalchemy_text(url),
        isolation_level="AUTOCOMMIT",
        pool_size=CONNECTIONS_KEPT,
        max_overflow=-1,
        pool_pre_ping=True,
    )
    if settings.dagster_url is None:
        keep_started(engine, settings.home)
    return engine


def _on(engine: Engine, storage: type[Part]) -> Part:
    """Return a part of the storage, on an engine; its tables are there."""
    url = engine.url.render_as_string(hide_password=False)
    part = storage(url, should_autocreate_tables=False)
    part._engine = engine
    return part
