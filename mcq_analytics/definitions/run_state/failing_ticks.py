"""Schedules and sensors whose latest ticks all failed, from Dagster's records of ticks.

Dagster does not export the status of a tick, so it is imported from its core.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timezone

from dagster import DagsterInstance
from dagster._core.scheduler.instigation import InstigatorState, InstigatorTick, TickStatus

from mcq_analytics.alerting.texts import FailingTicks
from mcq_analytics.definitions.run_state.run_errors import error_line

TICKS_BEFORE_ALERT = 3
_GOOD = [TickStatus.SUCCESS, TickStatus.SKIPPED]
_ENDED = [*_GOOD, TickStatus.FAILURE]


def failing_ticks(
    instance: DagsterInstance, names: Collection[str]
) -> tuple[dict[str, FailingTicks], set[str]]:
    """Return which of some schedules and sensors fail, and which succeeded at their latest tick.

    One that somebody has stopped is in neither.
    """
    failing: dict[str, FailingTicks] = {}
    good: set[str] = set()
    for name, (state, latest) in _latest_ticks(instance, names).items():
        if latest[0].status is not TickStatus.FAILURE:
            good.add(name)
        elif len(latest) == TICKS_BEFORE_ALERT and all(
            tick.status is TickStatus.FAILURE for tick in latest
        ):
            error = latest[0].error
            reason = (
                error_line(error, where="the tick") if error is not None else "no error is recorded"
            )
            failing[name] = FailingTicks(_since(instance, state), reason)
    return failing, good


def _latest_ticks(
    instance: DagsterInstance, names: Collection[str]
) -> dict[str, tuple[InstigatorState, list[InstigatorTick]]]:
    """Return the latest ticks that have ended, newest first, by name.

    Dagster also remembers schedules and sensors of removed code locations. If several have the same
    name, the one that ticked last counts.
    """
    found: dict[str, tuple[InstigatorState, list[InstigatorTick]]] = {}
    for state in instance.all_instigator_state():
        if state.name not in names or not state.is_running:
            continue
        ticks = list(
            instance.get_ticks(
                state.instigator_origin_id,
                state.selector_id,
                limit=TICKS_BEFORE_ALERT,
                statuses=_ENDED,
            )
        )
        known = found.get(state.name)
        if ticks and (known is None or ticks[0].timestamp > known[1][0].timestamp):
            found[state.name] = (state, ticks)
    return found


def _since(instance: DagsterInstance, state: InstigatorState) -> datetime:
    """Return the time of the first of the consecutive failures."""
    origin, selector = state.instigator_origin_id, state.selector_id
    good = instance.get_tick_summaries(origin, selector, limit=1, statuses=_GOOD)
    failed = instance.get_tick_summaries(
        origin,
        selector,
        after=good[0].timestamp if good else None,
        statuses=[TickStatus.FAILURE],
    )
    return datetime.fromtimestamp(failed[-1].timestamp, timezone.utc)
