"""The hourly schedule: it requests every hour that is over and missing, failed or wrong.

Between its ticks the sensors request hours: see `sensors`.
"""

from __future__ import annotations

from dagster import (
    DefaultScheduleStatus,
    RunRequest,
    ScheduleDefinition,
    ScheduleEvaluationContext,
    SkipReason,
    schedule,
)
from sqlalchemy.exc import SQLAlchemyError

from mcq_analytics.definitions.open_hours import NONE_IS_OVER, Tick
from mcq_analytics.definitions.partitions import run_request
from mcq_analytics.definitions.resources import DatabaseResource
from mcq_analytics.postgres.errors import explain
from mcq_analytics.settings import Settings

MINUTE_OF_HOUR = 5


def hourly_schedule(job_name: str, settings: Settings) -> ScheduleDefinition:
    """Return the schedule of the facts' job, five minutes past each hour.

    After a downtime of the daemon, the missing hours become few ranged runs, of at most
    `MCQ_CATCH_UP_HOURS` hours per tick. Hours that a run or backfill will compute are left out.
    """

    @schedule(
        name="hourly_facts_schedule",
        cron_schedule=f"{MINUTE_OF_HOUR} * * * *",
        job_name=job_name,
        execution_timezone="UTC",
        default_status=DefaultScheduleStatus.RUNNING,
        description="At five past each hour: runs every hour that is over and missing, failed or "
        "wrong, oldest first, in as few runs as possible.",
    )
    def hourly_facts_schedule(
        context: ScheduleEvaluationContext, database: DatabaseResource
    ) -> list[RunRequest] | SkipReason:
        tick = Tick.begin(context.instance, settings)
        if tick is None:
            return SkipReason(NONE_IS_OVER)
        try:
            found = tick.open_hours(database.open())
        except SQLAlchemyError as error:
            # A run will fail as well: it makes the failure visible, alerted on, and retried.
            context.log.warning("%s", explain(error, "reading which hours are done"))
            found = tick.newest_hour()
        runs = tick.requests(found.hours, found)
        if not runs:
            return SkipReason("All hours that are over are done or in progress.")
        name = f"{context.scheduled_execution_time:%Y-%m-%dT%H:%MZ}"
        return [run_request(run, name) for run in runs]

    return hourly_facts_schedule
