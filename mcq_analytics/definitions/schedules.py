"""Who asks for hours that are not done: the schedule each hour, and the recovery sensor between.

What they ask for is decided in `due`; late data is `late_data`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from dagster import (
    DagsterInstance,
    DefaultScheduleStatus,
    DefaultSensorStatus,
    RunRequest,
    ScheduleDefinition,
    ScheduleEvaluationContext,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    schedule,
    sensor,
)
from sqlalchemy.exc import SQLAlchemyError

from mcq_analytics.definitions.partitions import run_request
from mcq_analytics.definitions.requests import requests
from mcq_analytics.definitions.resources import DatabaseResource
from mcq_analytics.definitions.run_state.hour_outcomes import record_ended_runs, wrong_hours
from mcq_analytics.definitions.run_state.in_progress import hours_in_progress
from mcq_analytics.definitions.run_state.liveness import end_dead_runs
from mcq_analytics.errors import McqError
from mcq_analytics.model.facts import FACTS, FACTS_BY_NAME
from mcq_analytics.model.windows import HOUR, Window, hours_so_far
from mcq_analytics.postgres.errors import explain
from mcq_analytics.postgres.hours import hours_of_facts
from mcq_analytics.settings import Settings, load_settings

SECONDS_BETWEEN_TICKS = 60
AWAY, HERE = "away", "here"
"""Cursors of the recovery sensor: whether its last tick found the database answering."""

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
        span = hours_so_far(settings.partition_start)
        if span is None:
            return SkipReason("The first hour is not over yet.")
        end_dead_runs(context.instance)
        # What is in progress is asked for first: what ends in between has its status by then.
        busy = hours_in_progress(context.instance)
        try:
            hours = _known_hours(context.instance, database, settings, span)
            found = requests(hours.wanted, busy, settings.catch_up_hours, failed=hours.failed)
        except SQLAlchemyError as error:
            # The run fails as well, and is then seen, told of and made good as other failures are.
            context.log.warning("%s", explain(error, "reading which hours are done"))
            newest = {fact.name: {span.end - HOUR} for fact in FACTS}
            found = requests(newest, busy, settings.catch_up_hours)
        if not found:
            return SkipReason("All hours that are over are done or in progress.")
        tick = f"{context.scheduled_execution_time:%Y-%m-%dT%H:%MZ}"
        return [run_request(request, tick) for request in found]

    return hourly_facts_schedule


def recovery_sensor(job_name: str) -> SensorDefinition:
    """Return the sensor of the facts' job that does not leave failed hours to the schedule.

    Hours that failed together are asked for again, each half in a run of its own. All that is open
    is asked for as soon as a tick finds the database answering after one that did not.
    """

    @sensor(
        name="recovery_sensor",
        job_name=job_name,
        minimum_interval_seconds=SECONDS_BETWEEN_TICKS,
        default_status=DefaultSensorStatus.RUNNING,
        description="Hours that failed beside others run again in halves, until the bad ones stand "
        "alone; what failed while the database was away runs again when it is back.",
    )
    def recovery(
        context: SensorEvaluationContext, database: DatabaseResource
    ) -> SensorResult | SkipReason:
        settings = load_settings(database.environment)
        span = hours_so_far(settings.partition_start)
        if span is None:
            return SkipReason("The first hour is not over yet.")
        end_dead_runs(context.instance)
        busy = hours_in_progress(context.instance)
        try:
            hours = _known_hours(context.instance, database, settings, span)
        except (SQLAlchemyError, McqError) as error:
            said = f"The database does not answer: {explain(error, 'reading which hours are done')}"
            return SensorResult(skip_reason=SkipReason(said), cursor=AWAY)
        wanted = hours.wanted if context.cursor == AWAY else hours.failed_beside_others()
        found = requests(wanted, busy, settings.catch_up_hours, failed=hours.failed)
        return SensorResult(
            run_requests=[run_request(request, None) for request in found],
            skip_reason=None if found else SkipReason("No hour has failed beside others."),
            cursor=HERE,
        )

    return recovery


@dataclass(frozen=True)
class KnownHours:
    """Per fact: the hours to compute, and of failed ones the window that failed."""

    wanted: dict[str, set[datetime]]
    failed: dict[str, dict[datetime, Window]]

    def failed_beside_others(self) -> dict[str, set[datetime]]:
        """Return the hours to compute that failed in a window of several."""
        return {
            fact: {hour for hour, window in windows.items() if window.hours > 1} & self.wanted[fact]
            for fact, windows in self.failed.items()
        }


def _known_hours(
    instance: DagsterInstance, database: DatabaseResource, settings: Settings, span: Window
) -> KnownHours:
    """Return the hours that are missing, failed, or wrong, and that nobody has cancelled."""
    engine = database.open().engine()
    record_ended_runs(instance, settings, engine)
    hours = hours_of_facts(engine, settings, FACTS_BY_NAME)
    wanted = {fact_name: known.open_hours(span) for fact_name, known in hours.items()}
    for fact_name, wrong in wrong_hours(instance, engine, settings).items():
        inside = {hour for hour in wrong if span.start <= hour < span.end}
        wanted[fact_name] |= inside - hours[fact_name].cancelled(inside)
    failed = {fact_name: known.failed_windows() for fact_name, known in hours.items()}
    return KnownHours(wanted, failed)
