"""The hourly schedule. It requests every hour that is over and not done, not just the last one."""

from __future__ import annotations

from datetime import datetime

from dagster import (
    DagsterInstance,
    DefaultScheduleStatus,
    RunRequest,
    ScheduleDefinition,
    ScheduleEvaluationContext,
    SkipReason,
    schedule,
)
from sqlalchemy.exc import SQLAlchemyError

from mcq_analytics.definitions.hour_outcomes import record_failed_runs, wrong_hours
from mcq_analytics.definitions.in_progress import end_dead_runs, hours_in_progress
from mcq_analytics.definitions.partitions import run_request
from mcq_analytics.definitions.resources import DatabaseResource
from mcq_analytics.due import open_hours, requests
from mcq_analytics.facts import FACTS
from mcq_analytics.settings import Settings, load_settings
from mcq_analytics.storage.faults import explain
from mcq_analytics.storage.metadata import hour_statuses
from mcq_analytics.windows import HOUR, Window, last_closed_hour_end

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
        span = Window(settings.partition_start, closed)
        try:
            wanted = _wanted(context.instance, database, settings, span)
        except SQLAlchemyError as error:
            # The run fails as well, and is then seen, told of and made good as other failures are.
            context.log.warning("%s", explain(error, "reading which hours are done"))
            wanted = {fact.name: {closed - HOUR} for fact in FACTS}
        found = requests(wanted, busy, settings.catch_up_hours)
        if not found:
            return SkipReason("All hours that are over are done or in progress.")
        tick = f"{context.scheduled_execution_time:%Y-%m-%dT%H:%MZ}"
        return [run_request(request, tick) for request in found]

    return hourly_facts_schedule


def _wanted(
    instance: DagsterInstance, database: DatabaseResource, settings: Settings, span: Window
) -> dict[str, set[datetime]]:
    """Return per fact the hours that are missing, failed by what either record says, or wrong."""
    engine = database.open().engine()
    failed = record_failed_runs(instance, settings, engine).failed()
    for fact_name, wrong in wrong_hours(instance).items():
        failed[fact_name] |= wrong.keys()
    statuses = {fact.name: hour_statuses(engine, fact.name, settings) for fact in FACTS}
    return {
        fact: hours | {hour for hour in failed[fact] if span.start <= hour < span.end}
        for fact, hours in open_hours(statuses, span).items()
    }
