"""The hourly schedule. It requests every hour that is over and not done, not just the last one."""

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

from mcq_analytics.definitions.in_progress import end_dead_runs, hours_in_progress
from mcq_analytics.definitions.partitions import run_request
from mcq_analytics.definitions.resources import DatabaseResource
from mcq_analytics.due import open_hours, requests
from mcq_analytics.facts import FACTS
from mcq_analytics.settings import load_settings
from mcq_analytics.storage.faults import explain
from mcq_analytics.storage.metadata import hour_statuses
from mcq_analytics.windows import Window, last_closed_hour_end

MINUTE_OF_HOUR = 5


def hourly_schedule(job_name: str) -> ScheduleDefinition:
    """Return the schedule of the facts' job: at five past, all hours that are missing or failed.

    After the daemon was down they come as few ranged runs, at most `MCQ_CATCH_UP_HOURS` hours a
    tick. What a run or a backfill is about to compute is left to it.
    """

    @schedule(
        name="hourly_facts_schedule",
        cron_schedule=f"{MINUTE_OF_HOUR} * * * *",
        job_name=job_name,
        execution_timezone="UTC",
        default_status=DefaultScheduleStatus.RUNNING,
        description="At five past each hour: every hour that is over and missing or failed, the "
        "oldest first, as few ranged runs.",
    )
    def hourly_facts_schedule(
        context: ScheduleEvaluationContext, database: DatabaseResource
    ) -> list[RunRequest] | SkipReason:
        settings = load_settings(database.environment)
        closed = last_closed_hour_end()
        if closed <= settings.partition_start:
            return SkipReason("The first hour is not over yet.")
        end_dead_runs(context.instance)
        # What is in progress is asked for first: what ends in between has its status by then.
        busy = hours_in_progress(context.instance)
        engine = database.open().engine()
        try:
            statuses = {fact.name: hour_statuses(engine, fact.name, settings) for fact in FACTS}
        except SQLAlchemyError as error:
            raise explain(error, "reading which hours are done") from error
        wanted = open_hours(statuses, Window(settings.partition_start, closed))
        found = requests(wanted, busy, settings.catch_up_hours)
        if not found:
            return SkipReason("All hours that are over are done or in progress.")
        tick = f"{context.scheduled_execution_time:%Y-%m-%dT%H:%MZ}"
        return [run_request(request, tick) for request in found]

    return hourly_facts_schedule
