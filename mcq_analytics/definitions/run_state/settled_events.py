"""Up to which of Dagster's events every hour is settled: they need not be read again.

Dagster finds the hours whose latest run has not succeeded by comparing all events of an asset. In
three years these are 26,000 hours, at every run and every tick of a sensor. So the number of the
last event is kept before which no hour is open.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from dagster import AssetKey, AssetRecordsFilter, DagsterInstance

from mcq_analytics.model.facts import FACTS

SETTLING_SECONDS = 3_600
"""Within this time an event is visible to others: its number is drawn a little earlier."""
_KEY = "mcq_analytics/settled_events"
STEP = 1_000
"""The number is stored again when it has moved on by so many events."""


def settled_until(instance: DagsterInstance) -> int | None:
    """Return the number of an event; hours with an open run have one only after it."""
    kept = instance.daemon_cursor_storage.get_cursor_values({_KEY}).get(_KEY)
    return int(kept) if kept else None


def move_on(instance: DagsterInstance, known: int | None, open_events: Iterable[int]) -> None:
    """Store how far everything is settled, given the number known and the events still open."""
    old = instance.fetch_materializations(
        AssetRecordsFilter(
            AssetKey(FACTS[0].name), before_timestamp=time.time() - SETTLING_SECONDS
        ),
        limit=1,
    ).records
    if not old:
        return
    settled = min([old[0].storage_id, *(event - 1 for event in open_events)])
    if settled >= (known or 0) + STEP:
        instance.daemon_cursor_storage.set_cursor_values({_KEY: str(settled)})
