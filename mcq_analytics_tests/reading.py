"""The ways in which an attempt reads the base tables, for tests to choose on small data."""

from __future__ import annotations

import math

import pytest

from mcq_analytics.compute import inputs, touched
from mcq_analytics_tests.depth import IS_DEEP

WAYS = ("driver", "slices", "ranges", "ranges of answers")
"""By this process, by Spark's tasks for slices of the keys, by ranges of the tables' blocks, and so
for the answers alone, with the smaller tables by this process."""

_AS_THEY_ARE = {
    (module, name): getattr(module, name)
    for module, name in (
        (inputs, "DRIVER_ROWS"),
        (inputs, "SMALL_TABLE_ROWS"),
        (inputs, "KEYS_PER_SPLIT"),
        (inputs, "BROADCAST_KEYS"),
        (inputs, "ROWS_PER_SPLIT"),
        (touched, "SCANNED_SHARE"),
    )
}


def some_ways(first: int = 0) -> tuple[str, ...]:
    """Return every second way, from `first` on; in `make test-deep` all."""
    return WAYS if IS_DEEP else WAYS[first::2]


def read_by(way: str, patch: pytest.MonkeyPatch) -> None:
    """Make attempts that touch anything read in one way, by the bounds between the ways."""
    bounds = {name: value for (_, name), value in _AS_THEY_ARE.items()}
    if way != "driver":
        # Several splits, as far as the tables have blocks.
        bounds |= {"DRIVER_ROWS": 0, "KEYS_PER_SPLIT": 100, "ROWS_PER_SPLIT": 500}
        if way != "ranges of answers":
            bounds |= {"SMALL_TABLE_ROWS": 0, "BROADCAST_KEYS": 0}
        bounds["SCANNED_SHARE"] = math.inf if way == "slices" else 0
    for module, name in _AS_THEY_ARE:
        patch.setattr(module, name, bounds[name])
