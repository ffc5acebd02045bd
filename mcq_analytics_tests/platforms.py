"""A platform with forty hours of activity, all done, whose schedule and sensor tests trigger.

The fixtures that make one are in `platform_fixtures`.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from dagster import (
    DagsterInstance,
    Definitions,
    RunRequest,
)
from sqlalchemy import text

from mcq_analytics.definitions.build import FACTS_JOB, build_definitions
from mcq_analytics.definitions.partitions import hour_of
from mcq_analytics.model.windows import HOUR
from mcq_analytics.postgres.database import Database
from mcq_analytics.settings import load_settings
from mcq_analytics_tests.ticks import schedule_tick, sensor_tick


class Platform:
    """A platform whose ticks of schedule and late data sensor are triggered by tests."""

    def __init__(self, database: Database, instance: DagsterInstance, first: datetime) -> None:
        self.database = database
        self.instance = instance
        self.first = first
        self.cursor: str | None = None

    @property
    def definitions(self) -> Definitions:
        """The definitions for the settings as a test has them now."""
        return build_definitions(load_settings())

    def schedule_tick(self) -> list[RunRequest]:
        return schedule_tick(self.definitions, self.instance)

    def sensor_tick(self) -> list[RunRequest]:
        data = sensor_tick(self.definitions, self.instance, "late_data_sensor", self.cursor)
        self.cursor = data.cursor
        for event in data.asset_events:
            self.instance.report_runless_asset_event(event)
        return list(data.run_requests or [])

    def carry_out(self, found: Iterable[RunRequest]) -> None:
        job = self.definitions.resolve_job_def(FACTS_JOB)
        for request in found:
            result = job.execute_in_process(
                instance=self.instance,
                tags=dict(request.tags),
                partition_key=request.partition_key,
            )
            assert result.success

    def hours(self, found: Iterable[RunRequest]) -> list[tuple[int, int]]:
        """Return the first and last hour of each request, counted from the first partition."""
        bounds = []
        for request in found:
            first = request.partition_key or request.tags["dagster/asset_partition_range_start"]
            last = request.partition_key or request.tags["dagster/asset_partition_range_end"]
            bounds.append(
                ((hour_of(first) - self.first) // HOUR, (hour_of(last) - self.first) // HOUR)
            )
        return bounds

    def attempts(self, fact: str) -> list[int]:
        """Return how often each hour has succeeded for a fact, in order."""
        with self.database.engine().connect() as connection:
            return list(
                connection.execute(
                    text(
                        "SELECT count(*) FROM analytics.etl_metadata m, LATERAL generate_series("
                        "window_start, window_end - interval '1 hour', interval '1 hour') AS hour "
                        "WHERE status = 'success' AND pipeline_name = :fact "
                        "GROUP BY hour ORDER BY hour"
                    ),
                    {"fact": fact},
                ).scalars()
            )


def covered(platform: Platform, found: Iterable[RunRequest]) -> set[int]:
    """Return the hours of some requests, counted from the first partition."""
    return {hour for first, last in platform.hours(found) for hour in range(first, last + 1)}
