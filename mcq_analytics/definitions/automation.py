"""Stopped replacements for the schedule and the sensors, if `MCQ_AUTOMATION` is off.

A developer's `dagster dev` with production settings would be a second daemon: it would request the
same runs as the deployed one, and send the same alerts.
"""

from __future__ import annotations

import logging
import multiprocessing
from functools import cache

from dagster import (
    DefaultScheduleStatus,
    DefaultSensorStatus,
    ScheduleDefinition,
    SensorDefinition,
    SkipReason,
)

logger = logging.getLogger(__name__)

OFF = (
    "Off: this is dagster dev with MCQ_ENV=prod, or MCQ_AUTOMATION is false. Another daemon "
    "computes the hours and sends the alerts; set MCQ_AUTOMATION=true to let this one do it."
)


@cache
def warn() -> None:
    """Log once, in the code server but not in its runs, that nothing runs automatically."""
    if multiprocessing.parent_process() is None:
        logger.warning("no hour is computed and no alert is sent automatically. %s", OFF)


def idle_schedule(replaced: ScheduleDefinition) -> ScheduleDefinition:
    """Return a stopped schedule with the same name and times, whose ticks do nothing."""
    return ScheduleDefinition(
        name=replaced.name,
        cron_schedule=replaced.cron_schedule,
        job_name=replaced.job_name,
        execution_timezone=replaced.execution_timezone,
        default_status=DefaultScheduleStatus.STOPPED,
        description=f"{OFF}\n\n{replaced.description}",
        execution_fn=_skip,
    )


def idle_sensor(replaced: SensorDefinition) -> SensorDefinition:
    """Return a stopped sensor with the same name, whose ticks do nothing."""
    return SensorDefinition(
        name=replaced.name,
        minimum_interval_seconds=replaced.minimum_interval_seconds,
        default_status=DefaultSensorStatus.STOPPED,
        description=f"{OFF}\n\n{replaced.description}",
        evaluation_fn=_skip,
    )


def _skip(_: object) -> SkipReason:
    return SkipReason(OFF)
