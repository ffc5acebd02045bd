"""What stands in the place of the schedule and the sensors where nothing is to happen by itself.

`dagster dev` of a person whose settings name production is a second daemon beside the deployed one:
it would request the same runs, and send the same alerts.
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
    schedule,
    sensor,
)

logger = logging.getLogger(__name__)

OFF = (
    "Off here: this is dagster dev, and MCQ_ENV is prod, or MCQ_AUTOMATION is false. Another "
    "daemon computes the hours and sends the alerts; set MCQ_AUTOMATION=true to let this one do it."
)


@cache
def warn() -> None:
    """Say once that nothing happens by itself: the code server does, and none of its runs."""
    if multiprocessing.parent_process() is None:
        logger.warning("no hour is computed and no alert is sent by itself. %s", OFF)


def idle_schedule(replaced: ScheduleDefinition) -> ScheduleDefinition:
    """Return a schedule of the same name and times that is stopped, and requests nothing."""

    @schedule(
        name=replaced.name,
        cron_schedule=replaced.cron_schedule,
        job_name=replaced.job_name,
        execution_timezone=replaced.execution_timezone,
        default_status=DefaultScheduleStatus.STOPPED,
        description=f"{OFF}\n\n{replaced.description}",
    )
    def idle() -> SkipReason:
        return SkipReason(OFF)

    return idle


def idle_sensor(replaced: SensorDefinition) -> SensorDefinition:
    """Return a sensor of the same name that is stopped, and does nothing."""

    @sensor(
        name=replaced.name,
        minimum_interval_seconds=replaced.minimum_interval_seconds,
        default_status=DefaultSensorStatus.STOPPED,
        description=f"{OFF}\n\n{replaced.description}",
    )
    def idle() -> SkipReason:
        return SkipReason(OFF)

    return idle
