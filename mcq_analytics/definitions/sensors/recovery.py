"""The recovery sensor: it requests failed hours again without waiting for the schedule.

It narrows failures down, and catches up when the database is back. Hours that fail alone are left
to the schedule.
"""

from __future__ import annotations

from dagster import (
    DefaultSensorStatus,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    sensor,
)
from sqlalchemy.exc import SQLAlchemyError

from mcq_analytics.definitions.open_hours import NONE_IS_OVER, Tick
from mcq_analytics.definitions.partitions import run_request
from mcq_analytics.definitions.resources import DatabaseResource
from mcq_analytics.errors import McqError
from mcq_analytics.postgres.errors import explain
from mcq_analytics.settings import Settings

NAME = "recovery_sensor"
SECONDS_BETWEEN_TICKS = 60
AWAY, HERE = "away", "here"
"""The cursor: whether the database answered the last tick."""


def recovery_sensor(job_name: str, settings: Settings) -> SensorDefinition:
    """Return the sensor of the facts' job that requests failed hours again.

    Each half of a window that failed gets a run of its own, until the bad hours stand alone. After
    a tick that found no database, the next one that does requests all open hours.
    """

    @sensor(
        name=NAME,
        job_name=job_name,
        minimum_interval_seconds=SECONDS_BETWEEN_TICKS,
        default_status=DefaultSensorStatus.RUNNING,
        description="Splits failed windows in half and runs both halves, until the bad hours stand "
        "alone. Runs all open hours when the database is back after an outage.",
    )
    def recovery(
        context: SensorEvaluationContext, database: DatabaseResource
    ) -> SensorResult | SkipReason:
        tick = Tick.begin(context.instance, settings)
        if tick is None:
            return SkipReason(NONE_IS_OVER)
        try:
            found = tick.open_hours(database.open())
        except (SQLAlchemyError, McqError) as error:
            reason = explain(error, "reading which hours are done")
            return SensorResult(
                skip_reason=SkipReason(f"The database does not answer: {reason}"), cursor=AWAY
            )
        hours = found.hours if context.cursor == AWAY else found.failed_beside_others()
        runs = tick.requests(hours, found)
        return SensorResult(
            run_requests=[run_request(run, None) for run in runs],
            skip_reason=None if runs else SkipReason("No window of several hours has failed."),
            cursor=HERE,
        )

    return recovery
