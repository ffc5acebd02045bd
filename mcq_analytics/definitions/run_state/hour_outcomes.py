"""The latest outcome of each hour in Dagster; copies failures to `etl_metadata`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone

from dagster import (
    AssetKey,
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    RunRecord,
    RunsFilter,
)
from sqlalchemy.engine import Engine

from mcq_analytics.alerting.incidents import Failure
from mcq_analytics.definitions.partitions import hour_of
from mcq_analytics.definitions.run_state.in_progress import BACKFILL_TAG, is_retried
from mcq_analytics.definitions.run_state.run_errors import Ending, ending_of, error_of_run
from mcq_analytics.definitions.run_state.settled_events import move_on, settled_until
from mcq_analytics.model.facts import FACTS
from mcq_analytics.model.windows import ranges
from mcq_analytics.postgres.fact_tables import CANCELLED, FAILED
from mcq_analytics.postgres.metadata import CANCELLED_TEXT, PastAttempt, record_ended
from mcq_analytics.quality import verdicts
from mcq_analytics.settings import Settings

LOCK_TIMEOUT_TAG = "mcq/lock_timeout"
_GAVE_UP_TEXT = "It gave up waiting for another run, and computed nothing."
_STOPPED_TEXT = "Somebody stopped its process."


@dataclass(frozen=True)
class UnfinishedHours:
    """The hours whose latest run has not succeeded, with that run.

    `failed_runs` are the records of those runs that failed for good, `cancelled_runs` of those that
    somebody cancelled.
    """

    runs: dict[datetime, DagsterRun]
    failed_runs: dict[str, RunRecord]
    cancelled_runs: dict[str, RunRecord]

    def failed(self, *, in_backfill: bool | None = None) -> set[datetime]:
        """Return the hours that failed for good; optionally only (not) in backfills."""
        return {
            hour
            for hour, run in self.runs.items()
            if run.run_id in self.failed_runs and in_backfill in (None, BACKFILL_TAG in run.tags)
        }

    def unsettled(self) -> set[datetime]:
        """Return the hours in progress, about to be retried, or cancelled."""
        return {hour for hour, run in self.runs.items() if run.run_id not in self.failed_runs}


def unfinished_hours(instance: DagsterInstance) -> UnfinishedHours:
    """Return the hours whose latest run has not succeeded.

    A run that was interrupted, or gave up waiting for another one, is no failure: it is reported to
    Dagster as cancelled, which leaves its hours as they were.
    """
    run_ids = _latest_runs(instance)
    wanted = sorted(set(run_ids.values()))
    records = instance.get_run_records(RunsFilter(run_ids=wanted)) if wanted else []
    by_id = {record.dagster_run.run_id: record for record in records}
    ended = {
        run_id: record
        for run_id, record in by_id.items()
        if record.dagster_run.status is DagsterRunStatus.FAILURE
        and not is_retried(instance, record)
    }
    endings = {run_id: ending_of(instance, run_id) for run_id in ended}
    waited = {run_id for run_id, ending in endings.items() if ending is Ending.GAVE_UP}
    stopped = {run_id for run_id, ending in endings.items() if ending is Ending.STOPPED}
    for run_id in waited:
        instance.add_run_tags(run_id, {LOCK_TIMEOUT_TAG: "true"})
        instance.report_run_canceled(by_id[run_id].dagster_run, _GAVE_UP_TEXT)
    for run_id in stopped:
        instance.report_run_canceled(by_id[run_id].dagster_run, _STOPPED_TEXT)
    if waited or stopped:
        # Dagster's pages cache the failure of such a run if they were opened before.
        instance.wipe_asset_cached_status([AssetKey(fact.name) for fact in FACTS])
    return UnfinishedHours(
        {hour: by_id[run_id].dagster_run for hour, run_id in run_ids.items() if run_id in by_id},
        {run_id: ended[run_id] for run_id, one in endings.items() if one is Ending.FAILED},
        {
            run_id: record
            for run_id, record in by_id.items()
            if run_id in stopped
            or (
                record.dagster_run.status is DagsterRunStatus.CANCELED
                and LOCK_TIMEOUT_TAG not in record.dagster_run.tags
            )
        },
    )


def _latest_runs(instance: DagsterInstance) -> dict[datetime, str]:
    """Return the id of the latest run over each hour that Dagster does not know to be computed.

    A run that died while Dagster recorded its success has materialized some of the facts only: an
    hour counts as computed once all of them are materialized.
    """
    events = instance.event_log_storage
    latest = events.get_latest_asset_partition_materialization_attempts_without_materializations
    settled = settled_until(instance)
    found: dict[datetime, tuple[int, str]] = {}
    open_events = []
    for fact in FACTS:
        for key, (run_id, event) in latest(AssetKey(fact.name), settled).items():
            hour = hour_of(key)
            found[hour] = max(found.get(hour, (event, run_id)), (event, run_id))
            open_events.append(event)
    move_on(instance, settled, open_events)
    return {hour: run_id for hour, (_, run_id) in found.items()}


def wrong_hours(
    instance: DagsterInstance, engine: Engine, settings: Settings
) -> dict[str, dict[datetime, Failure]]:
    """Return, per fact, the hours over which a blocking check failed the last time it ran.

    Hours of a run that is about to be retried are left out.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: the database of the facts cannot be read.

    """
    with engine.connect() as connection:
        found = verdicts.wrong_hours(connection, settings.fact_schema)
    run_ids = {verdict.run_id for hours in found.values() for verdict in hours.values()}
    retried = _retried(instance, run_ids)
    return {
        fact.name: {
            hour: Failure(verdict.run_id, verdict.error)
            for hour, verdict in found.get(fact.name, {}).items()
            if verdict.run_id not in retried
        }
        for fact in FACTS
    }


def _retried(instance: DagsterInstance, run_ids: set[str]) -> set[str]:
    """Return which of some runs will be retried automatically."""
    if not run_ids:
        return set()
    records = instance.get_run_records(RunsFilter(run_ids=sorted(run_ids)))
    return {record.dagster_run.run_id for record in records if is_retried(instance, record)}


def record_ended_runs(
    instance: DagsterInstance, settings: Settings, engine: Engine
) -> UnfinishedHours:
    """Record in `etl_metadata` the runs that only Dagster knows to have ended.

    These are runs that died, never reached the database, or were cancelled. If one ended after it
    had stored the facts but before Dagster knew, its hours count as failed: the run that follows
    changes no row, and completes Dagster's record. Returns the unfinished hours.
    """
    found = unfinished_hours(instance)
    errors = {run_id: error_of_run(instance, run_id) for run_id in found.failed_runs}
    ended = [
        *((run_id, record, FAILED) for run_id, record in found.failed_runs.items()),
        *((run_id, record, CANCELLED) for run_id, record in found.cancelled_runs.items()),
    ]
    attempts = []
    for run_id, record, status in ended:
        hours = [hour for hour, run in found.runs.items() if run.run_id == run_id]
        at = record.end_time or record.update_timestamp.timestamp()
        attempts += [
            PastAttempt(
                pipeline_name=fact.name,
                window=window,
                status=status,
                rows_read=None,
                rows_written=None,
                started_at=_moment(record.start_time or at),
                finished_at=_moment(at),
                run_id=run_id,
                error=errors.get(run_id, CANCELLED_TEXT),
            )
            for fact in FACTS
            for window in ranges(hours)
        ]
    record_ended(engine, settings, attempts)
    return found


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)
