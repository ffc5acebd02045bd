"""Decides which hours need a run: over, missing, failed or wrong, and not in progress.

Which of them become runs is decided in `requests`.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import datetime

from dagster import DagsterInstance

from mcq_analytics.definitions.requests import requests
from mcq_analytics.definitions.run_state.hour_outcomes import record_ended_runs, wrong_hours
from mcq_analytics.definitions.run_state.in_progress import hours_in_progress
from mcq_analytics.definitions.run_state.liveness import end_dead_runs
from mcq_analytics.model.facts import FACTS_BY_NAME
from mcq_analytics.model.windows import HOUR, Window, hours_so_far
from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.hours import hours_of_facts
from mcq_analytics.settings import Settings

NONE_IS_OVER = "The first hour is not over yet."
"""Why a tick is skipped before the first partition has closed."""


@dataclass(frozen=True)
class OpenHours:
    """The open hours, and for each failed hour the window that failed.

    An hour is open if for any fact it is missing, failed or wrong, and no later attempt was
    cancelled.
    """

    hours: AbstractSet[datetime]
    failed: Mapping[datetime, Window] = field(default_factory=dict)

    def failed_beside_others(self) -> set[datetime]:
        """Return the open hours that failed in a window of several hours."""
        return {hour for hour, window in self.failed.items() if window.hours > 1} & self.hours


@dataclass(frozen=True)
class Tick:
    """The hours that are over at a tick, and those that are in progress."""

    instance: DagsterInstance
    settings: Settings
    span: Window
    in_progress: AbstractSet[datetime]

    @classmethod
    def begin(cls, instance: DagsterInstance, settings: Settings) -> Tick | None:
        """Return the tick, or None if no hour is over yet. Runs whose process died are ended."""
        span = hours_so_far(settings.partition_start)
        if span is None:
            return None
        end_dead_runs(instance, settings)
        # Before `etl_metadata` is read: a run that ends in between has its status by then.
        return cls(instance, settings, span, hours_in_progress(instance))

    def open_hours(self, database: Database) -> OpenHours:
        """Return the open hours, after recording in `etl_metadata` the runs that have ended.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: the database of the facts does not answer.

        """
        engine = database.engine()
        record_ended_runs(self.instance, self.settings, engine)
        known = hours_of_facts(engine, self.settings, FACTS_BY_NAME)
        found: set[datetime] = set()
        failed: dict[datetime, Window] = {}
        for name, wrong in wrong_hours(self.instance, engine, self.settings).items():
            inside = {hour for hour in wrong if self.span.start <= hour < self.span.end}
            found |= inside - known[name].cancelled(inside)
        for hours in known.values():
            found |= hours.open_hours(self.span)
            failed |= hours.failed_windows()
        return OpenHours(found, failed)

    def newest_hour(self) -> OpenHours:
        """Return the newest hour as the only open one: all that is known without the database."""
        return OpenHours({self.span.end - HOUR})

    def requests(self, hours: AbstractSet[datetime], found: OpenHours) -> list[Window]:
        """Return the windows of the runs for some open hours, without those in progress."""
        limit = self.settings.catch_up_hours
        return requests(hours, self.in_progress, limit, failed=found.failed)
