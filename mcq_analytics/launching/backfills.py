"""Backfills by the running daemon: plans them, submits them in pieces, and follows them.

They are asset backfills, because job backfills ignore the backfill policy. The only public way to
submit one is Dagster's webserver, which may not be running; so this imports Dagster's core, and
Dagster's version is pinned.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from dagster import AssetKey, DagsterInstance
from dagster._core.definitions.assets.graph.asset_graph_subset import AssetGraphSubset
from dagster._core.definitions.selector import (
    PartitionRangeSelector,
    PartitionsByAssetSelector,
    PartitionsSelector,
)
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.utils import make_new_backfill_id
from sqlalchemy.exc import SQLAlchemyError

from mcq_analytics.definitions.build import build_definitions
from mcq_analytics.definitions.partitions import partition_key
from mcq_analytics.definitions.requests import requests
from mcq_analytics.definitions.run_state.hour_outcomes import record_ended_runs
from mcq_analytics.definitions.run_state.liveness import end_dead_runs
from mcq_analytics.errors import McqError
from mcq_analytics.model.facts import FACTS, FACTS_BY_NAME
from mcq_analytics.model.windows import HOUR, Window, format_hour
from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.errors import explaining
from mcq_analytics.postgres.fact_tables import FAILED
from mcq_analytics.postgres.hours import hours_of_facts
from mcq_analytics.settings import Settings

PRIORITY = "-1"
"""Priority of a backfill's runs: hourly runs that are queued later go first."""
_SECONDS_BETWEEN_LOOKS = 1.0
_HEARTBEAT_WITHIN = timedelta(minutes=2)
_DAEMON = "BACKFILL"
_ENDED = (
    BulkActionStatus.COMPLETED,
    BulkActionStatus.COMPLETED_SUCCESS,
    BulkActionStatus.COMPLETED_FAILED,
    BulkActionStatus.FAILED,
    BulkActionStatus.CANCELED,
)

_LAST_RECORDED = AssetKey(FACTS[-1].name)
"""A run records its hours for one fact after the other: with this one they are done."""

HoursDone = Callable[[int, str], None]
"""Called with the number of hours just computed, and what is left."""


@dataclass(frozen=True)
class Piece:
    """One backfill: the windows of the planned runs within a chunk of the window."""

    runs: Sequence[Window]

    @property
    def hours(self) -> int:
        """Number of hours of all runs."""
        return sum(run.hours for run in self.runs)


def plan(
    instance: DagsterInstance,
    database: Database,
    settings: Settings,
    window: Window,
    *,
    chunk: int,
    only_missing: bool = False,
    only_failed: bool = False,
) -> list[Piece]:
    """Return the backfills that compute a window, oldest first: one per `chunk` hours.

    `only_missing` selects the hours over which some fact was never attempted; `only_failed` those
    whose latest attempt failed; both together, the hours of either kind.

    Raises:
        McqError: the database or the instance cannot be read.

    """
    wanted = set(window.starts())
    if only_missing or only_failed:
        with explaining("reading which hours are missing or failed", SQLAlchemyError):
            engine = database.engine()
            end_dead_runs(instance, settings)
            record_ended_runs(instance, settings, engine)
            of_facts = [
                known.statuses()
                for known in hours_of_facts(engine, settings, FACTS_BY_NAME).values()
            ]
            wanted = {
                hour
                for hour in wanted
                if any(
                    (only_missing and hour not in statuses)
                    or (only_failed and statuses.get(hour) == FAILED)
                    for statuses in of_facts
                )
            }
    pieces = []
    for part in window.chunks(chunk):
        inside = wanted.intersection(part.starts())
        runs = requests(inside, frozenset(), limit=part.hours, per_run=chunk)
        if runs:
            pieces.append(Piece(runs))
    return pieces


def submit(instance: DagsterInstance, settings: Settings, pieces: Sequence[Piece]) -> list[str]:
    """Hand backfills to the daemon, which launches their runs; return their ids.

    Raises:
        McqError: no daemon runs on this instance.

    """
    if not _daemon_is_alive(instance):
        raise McqError(
            "no Dagster daemon is running on this instance: start one with `dagster dev` or "
            "`dagster-daemon run`, or compute the hours here with `mcq-analytics run`"
        )
    graph = build_definitions(settings).resolve_asset_graph()
    ids = []
    for piece in pieces:
        partitions = PartitionsSelector(
            [
                PartitionRangeSelector(partition_key(run.start), partition_key(run.end - HOUR))
                for run in piece.runs
            ]
        )
        selectors = [
            PartitionsByAssetSelector(asset_key=AssetKey(fact), partitions=partitions)
            for fact in FACTS_BY_NAME
        ]
        first, last = piece.runs[0].start, piece.runs[-1].end
        backfill = PartitionBackfill.from_partitions_by_assets(
            backfill_id=make_new_backfill_id(),
            asset_graph=graph,
            backfill_timestamp=time.time(),
            tags={"dagster/priority": PRIORITY},
            dynamic_partitions_store=instance,
            partitions_by_assets=selectors,
            title=f"{format_hour(first)} to {format_hour(last)}",
            description="mcq-analytics backfill",
            run_config=None,
        )
        instance.add_backfill(backfill)
        ids.append(backfill.backfill_id)
    return ids


def follow(instance: DagsterInstance, ids: Sequence[str], progress: HoursDone) -> None:
    """Wait until backfills have ended; `progress` is called with the hours done since.

    Raises:
        McqError: an hour failed, a backfill failed or was cancelled, or the daemon stopped.

    """
    done = 0
    while True:
        found = [_backfill(instance, backfill_id) for backfill_id in ids]
        now_done = sum(_done(backfill) for backfill in found)
        open_ones = [backfill for backfill in found if backfill.status not in _ENDED]
        progress(now_done - done, f"{len(open_ones)} of {len(ids)} backfills to go")
        done = now_done
        if not open_ones:
            break
        if not _daemon_is_alive(instance):
            raise McqError(
                "the Dagster daemon has stopped: the backfill continues when it runs again"
            )
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    for backfill in found:
        if backfill.status is BulkActionStatus.FAILED:
            reason = backfill.error.message.strip() if backfill.error else "see its page in the UI"
            raise McqError(f"the backfill {backfill.backfill_id} failed: {reason.splitlines()[0]}")
        if backfill.status is BulkActionStatus.CANCELED:
            raise McqError(f"the backfill {backfill.backfill_id} was cancelled")
    failed = sum(_failed(backfill) for backfill in found)
    if failed:
        raise McqError(
            f"{failed:,} hours failed: `mcq-analytics status` shows why; fix the cause, "
            "then run the command again with --only-failed"
        )


def _backfill(instance: DagsterInstance, backfill_id: str) -> PartitionBackfill:
    found = instance.get_backfill(backfill_id)
    if found is None:
        raise McqError(f"Dagster no longer knows the backfill {backfill_id}")
    return found


def _done(backfill: PartitionBackfill) -> int:
    data = backfill.asset_backfill_data
    return _hours(data.materialized_subset) if data else 0


def _failed(backfill: PartitionBackfill) -> int:
    data = backfill.asset_backfill_data
    return _hours(data.failed_and_downstream_subset) if data else 0


def _hours(subset: AssetGraphSubset) -> int:
    return len(subset.partitions_subsets_by_asset_key.get(_LAST_RECORDED, ()))


def _daemon_is_alive(instance: DagsterInstance) -> bool:
    heartbeat = instance.get_daemon_heartbeats().get(_DAEMON)
    if heartbeat is None:
        return False
    latest = datetime.fromtimestamp(heartbeat.timestamp, timezone.utc)
    return datetime.now(timezone.utc) - latest < _HEARTBEAT_WITHIN
