"""Where the Dagster instance keeps its records: PostgreSQL, the embedded server by default.

`dagster.yaml` names the class; nothing else refers to it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from dagster import DagsterEventType, EventLogEntry
from dagster_postgres import DagsterPostgresStorage, PostgresEventLogStorage
from sqlalchemy import create_engine, literal_column
from sqlalchemy.engine import URL

from mcq_analytics.instance.console import name_and_date_lines
from mcq_analytics.postgres.database import sqlalchemy_text
from mcq_analytics.postgres.embedded import DAGSTER_DATABASE, embedded_url, keep_started
from mcq_analytics.settings import Settings, load_settings

EVENTS_PER_BATCH = "1000"
CONNECTIONS_KEPT = 2
"""Of a process, to the database of Dagster's records; more are opened while they are needed."""


class BatchingEventLogStorage(PostgresEventLogStorage):
    """Stores the planned events of a ranged run in one insert, as its base does those that follow.

    A run over some hours plans an event for each fact and hour, which costs more than all else
    that Dagster records of it when they are stored one by one.
    """

    def store_event_batch(self, events: Sequence[EventLogEntry]) -> None:
        """Store the planned hours among the events together; others as the base class does."""
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
        """Keep a check when it is evaluated, not when it is planned.

        Dagster takes for the latest what was kept last. Of runs that wait in the queue together
        that would be a check of the one that was planned last, whichever ends last; and one would
        be kept for each hour of a run, though the checks have no partitions.
        """
        planned = DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED
        if event.get_dagster_event().event_type is not planned:
            super().store_asset_check_event(event, event_id)

    def dispose(self) -> None:
        """Close what is open; a later use would open it anew."""
        super().dispose()
        self._engine.dispose()


def records_url(settings: Settings) -> URL:
    """Return the URL of the database of Dagster's records; the embedded server is started.

    Raises:
        McqError: the embedded server does not start.

    """
    if settings.dagster_url is not None:
        return settings.dagster_url
    return embedded_url(settings.home, DAGSTER_DATABASE).update_query_dict(
        {"options": "-c synchronous_commit=off"}
    )


def _plans_an_hour(event: EventLogEntry) -> bool:
    planned = DagsterEventType.ASSET_MATERIALIZATION_PLANNED
    return event.get_dagster_event().event_type is planned


class InstanceStorage(DagsterPostgresStorage):
    """Dagster's own PostgreSQL storage at `MCQ_DAGSTER_URL`, else on the embedded server.

    Its parts share connections, which stay open between uses: a step of a run writes dozens of
    events, and Dagster would connect for each. One that was lost meanwhile is replaced.

    On the embedded server a commit does not wait for the disk: a crash of the machine may lose the
    last records of Dagster, and never anything of the facts, which have their own database.
    """

    def __init__(self, inst_data: Any = None) -> None:
        os.environ.setdefault("DAGSTER_EVENT_BATCH_SIZE", EVENTS_PER_BATCH)
        if "DAGSTER_IS_DEV_CLI" in os.environ:
            name_and_date_lines()
        settings = load_settings()
        text = sqlalchemy_text(records_url(settings))
        super().__init__(text, inst_data=inst_data)
        self._event_log_storage = BatchingEventLogStorage(text)
        engine = create_engine(
            text,
            isolation_level="AUTOCOMMIT",
            pool_size=CONNECTIONS_KEPT,
            max_overflow=-1,
            pool_pre_ping=True,
        )
        if settings.dagster_url is None:
            keep_started(engine, settings.home)
        for part in (self._run_storage, self._event_log_storage, self._schedule_storage):
            part._engine = engine

    @classmethod
    def config_type(cls) -> Any:
        """Return the configuration that `dagster.yaml` may hold: none, secrets least of all."""
        return {}

    @classmethod
    def from_config_value(cls, inst_data: Any, config_value: Mapping[str, Any]) -> InstanceStorage:
        """Return the storage that the settings name."""
        return cls(inst_data)
