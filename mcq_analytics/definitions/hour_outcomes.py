"""What Dagster tells of the hours that are not good: the run that failed, or found them wrong.

The status of an evaluation has no public name to filter by: it is imported from Dagster's core.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone

from dagster import (
    AssetKey,
    DagsterEventType,
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    RunRecord,
    RunsFilter,
)
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from sqlalchemy.engine import Engine

from mcq_analytics.definitions.checks import REMEDY, blocking_checks, window_of
from mcq_analytics.definitions.in_progress import BACKFILL_TAG, is_retried
from mcq_analytics.definitions.partitions import hour_of
from mcq_analytics.definitions.run_errors import error_of_run
from mcq_analytics.facts import FACTS
from mcq_analytics.incidents import Failure
from mcq_analytics.settings import Settings
from mcq_analytics.storage.fact_tables import FAILED
from mcq_analytics.storage.metadata import PastAttempt, record_failures
from mcq_analytics.windows import ranges

_LATEST_EVALUATIONS = 500


@dataclass(frozen=True)
class OpenHours:
    """Per fact and hour whose latest run has not succeeded: that run; and runs failed for good."""

    runs: dict[str, dict[datetime, DagsterRun]]
    failed_runs: dict[str, RunRecord]

    def failed(self, *, in_backfill: bool | None = None) -> dict[str, set[datetime]]:
        """Return per fact the hours that failed for good: all, or those in a backfill or not."""
        return {
            fact: {
                hour
                for hour, run in runs.items()
                if run.run_id in self.failed_runs
                and in_backfill in (None, BACKFILL_TAG in run.tags)
            }
            for fact, runs in self.runs.items()
        }

    def unsettled(self) -> dict[str, set[datetime]]:
        """Return per fact the hours in progress, to be tried again, or cancelled."""
        return {
            fact: {hour for hour, run in runs.items() if run.run_id not in self.failed_runs}
            for fact, runs in self.runs.items()
        }


def open_hours_of(instance: DagsterInstance) -> OpenHours:
    """Return the hours whose latest run has not succeeded."""
    events = instance.event_log_storage
    latest = events.get_latest_asset_partition_materialization_attempts_without_materializations
    run_ids = {
        fact.name: {
            hour_of(key): run_id for key, (run_id, _) in latest(AssetKey(fact.name)).items()
        }
        for fact in FACTS
    }
    wanted = sorted({run_id for hours in run_ids.values() for run_id in hours.values()})
    records = instance.get_run_records(RunsFilter(run_ids=wanted)) if wanted else []
    runs = {record.dagster_run.run_id: record.dagster_run for record in records}
    failed = {
        record.dagster_run.run_id: record
        for record in records
        if record.dagster_run.status is DagsterRunStatus.FAILURE
        and not is_retried(instance, record)
    }
    return OpenHours(
        {
            fact: {hour: runs[run_id] for hour, run_id in hours.items() if run_id in runs}
            for fact, hours in run_ids.items()
        },
        failed,
    )


def wrong_hours(instance: DagsterInstance) -> dict[str, dict[datetime, Failure]]:
    """Return per fact the hours over which a blocking check failed when it was last evaluated.

    Evaluations that are about to be done again, since their run is, are not among them.
    """
    events = instance.event_log_storage
    failed = {AssetCheckExecutionRecordStatus.FAILED}
    wrong: dict[str, dict[datetime, Failure]] = {fact.name: {} for fact in FACTS}
    for key in blocking_checks():
        if not events.get_asset_check_execution_history(key, limit=1, status=failed):
            continue
        evaluated: dict[datetime, Failure | None] = {}
        for record in events.get_asset_check_execution_history(key, limit=_LATEST_EVALUATIONS):
            event = record.event.dagster_event if record.event is not None else None
            if event is None or event.event_type is not DagsterEventType.ASSET_CHECK_EVALUATION:
                continue
            evaluation = event.asset_check_evaluation_data
            window = window_of(evaluation.metadata)
            if window is None:
                continue
            said = f"the check {key.name} failed ({evaluation.description}): {REMEDY}"
            failure = Failure(record.run_id, said)
            for one in window.chunks(1):
                evaluated.setdefault(one.start, None if evaluation.passed else failure)
        found = {hour: failure for hour, failure in evaluated.items() if failure is not None}
        settled = _settled(instance, {failure.run_id for failure in found.values()})
        for hour, failure in found.items():
            if failure.run_id in settled:
                wrong[key.asset_key.to_user_string()].setdefault(hour, failure)
    return wrong


def _settled(instance: DagsterInstance, run_ids: set[str]) -> set[str]:
    """Return which of some runs are not tried again by themselves."""
    if not run_ids:
        return set()
    records = instance.get_run_records(RunsFilter(run_ids=sorted(run_ids)))
    return {record.dagster_run.run_id for record in records if not is_retried(instance, record)}


def record_failed_runs(instance: DagsterInstance, settings: Settings, engine: Engine) -> OpenHours:
    """Record in `etl_metadata` what Dagster alone knows to have failed; return the open hours.

    Such are runs that died, or lost the database, before they came to a fact.
    """
    found = open_hours_of(instance)
    errors = {run_id: error_of_run(instance, run_id) for run_id in found.failed_runs}
    failures = []
    for fact, runs in found.runs.items():
        for run_id, record in found.failed_runs.items():
            hours = [hour for hour, run in runs.items() if run.run_id == run_id]
            ended = record.end_time or record.update_timestamp.timestamp()
            failures += [
                PastAttempt(
                    pipeline_name=fact,
                    window=window,
                    status=FAILED,
                    rows_read=None,
                    rows_written=None,
                    started_at=_moment(record.start_time or ended),
                    finished_at=_moment(ended),
                    run_id=run_id,
                    error=errors[run_id],
                )
                for window in ranges(hours)
            ]
    record_failures(engine, settings, failures)
    return found


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)
