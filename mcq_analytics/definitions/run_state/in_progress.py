"""The hours that runs and backfills in progress will compute.

Runs whose process died without a word are found by `liveness`.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from dagster import AssetKey, DagsterInstance, DagsterRun, DagsterRunStatus, RunRecord, RunsFilter
from dagster._core.execution.backfill import BulkActionsFilter, BulkActionStatus

from mcq_analytics.definitions.partitions import RANGE_END_TAG, RANGE_START_TAG, hour_of
from mcq_analytics.model.facts import FACTS
from mcq_analytics.model.windows import HOUR

_IN_PROGRESS = [
    DagsterRunStatus.NOT_STARTED,
    DagsterRunStatus.QUEUED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
]
_FACT_KEYS = {AssetKey(fact.name) for fact in FACTS}
_PARTITION_TAG = "dagster/partition"
_WILL_RETRY_TAG = "dagster/will_retry"
MAX_RETRIES_TAG = "dagster/max_retries"
BACKFILL_TAG = "dagster/backfill"
_RETRY_TAG = "dagster/auto_retry_run_id"
_NOTED_WITHIN = timedelta(minutes=1)
_RETRY_WITHIN = timedelta(minutes=10)
_UNFINISHED_BACKFILLS = [
    BulkActionStatus.REQUESTED,
    BulkActionStatus.CANCELING,
    BulkActionStatus.FAILING,
]


def hours_in_progress(instance: DagsterInstance) -> set[datetime]:
    """Return the hours of all runs and backfills of the facts that have not ended.

    Failed runs that Dagster is about to retry count too.
    """
    hours: set[datetime] = set()
    for run in [*instance.get_runs(RunsFilter(statuses=_IN_PROGRESS)), *_retried_runs(instance)]:
        # A run of the whole job has no selection, or an empty one. One of checks alone has one.
        if not run.asset_selection or not _FACT_KEYS.isdisjoint(run.asset_selection):
            hours.update(hours_of_run(run))
    for backfill in instance.get_backfills(BulkActionsFilter(statuses=_UNFINISHED_BACKFILLS)):
        if not backfill.asset_backfill_data:
            continue
        target = backfill.asset_backfill_data.target_subset
        for key in _FACT_KEYS & target.asset_keys:
            hours.update(map(hour_of, target.get_partitions_subset(key).get_partition_keys()))
    return hours


def is_retried(instance: DagsterInstance, record: RunRecord) -> bool:
    """Return whether the daemon retries a failed run: soon, or right now.

    A tag on the run says so shortly after the failure. If no retry comes for a while, the daemon is
    taken to be down, and the answer is no.
    """
    run = record.dagster_run
    ended = datetime.now(timezone.utc) - record.update_timestamp.replace(tzinfo=timezone.utc)
    if run.tags.get(_RETRY_TAG):
        retry = instance.get_run_by_id(run.tags[_RETRY_TAG])
        return retry is not None and not retry.is_finished
    if _WILL_RETRY_TAG not in run.tags:
        return instance.run_retries_enabled and ended < _NOTED_WITHIN
    return run.tags[_WILL_RETRY_TAG] == "true" and ended < _RETRY_WITHIN


def _retried_runs(instance: DagsterInstance) -> list[DagsterRun]:
    failed = RunsFilter(
        statuses=[DagsterRunStatus.FAILURE],
        updated_after=datetime.now(timezone.utc) - _RETRY_WITHIN,
    )
    return [
        record.dagster_run
        for record in instance.get_run_records(failed)
        if is_retried(instance, record)
    ]


def hours_of_run(run: DagsterRun) -> set[datetime]:
    """Return the hours that a run computes, by its tags."""
    first = run.tags.get(RANGE_START_TAG) or run.tags.get(_PARTITION_TAG)
    if first is None:
        return set()
    begin = hour_of(first)
    last = hour_of(run.tags.get(RANGE_END_TAG) or first)
    return {begin + index * HOUR for index in range((last - begin) // HOUR + 1)}
