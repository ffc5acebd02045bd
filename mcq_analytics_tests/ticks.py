"""Ticks of the schedule and the sensors, triggered by tests."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from dagster import (
    DagsterInstance,
    Definitions,
    RunRequest,
    build_schedule_context,
    build_sensor_context,
)

from mcq_analytics.definitions.resources import DatabaseResource
from mcq_analytics.settings import load_settings


def schedule_tick(definitions: Definitions, instance: DagsterInstance) -> list[RunRequest]:
    """Run a tick of the hourly schedule, and return its run requests."""
    schedule = definitions.resolve_schedule_def("hourly_facts_schedule")
    with build_schedule_context(
        instance=instance,
        scheduled_execution_time=datetime.now(timezone.utc),
        repository_def=definitions.get_repository_def(),
        resources={"database": DatabaseResource(settings=load_settings())},
    ) as context:
        return list(schedule.evaluate_tick(context).run_requests or [])


def sensor_tick(
    definitions: Definitions, instance: DagsterInstance, name: str, cursor: str | None
) -> Any:
    """Run a tick of a sensor, and return its run requests, cursor and events."""
    with build_sensor_context(
        instance=instance,
        cursor=cursor,
        definitions=definitions,
        resources={"database": DatabaseResource(settings=load_settings())},
    ) as context:
        return definitions.resolve_sensor_def(name).evaluate_tick(context)
