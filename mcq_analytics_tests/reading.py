"""The three ways in which an attempt reads the base tables, for tests to choose on small data."""

from __future__ import annotations

import math

import pytest

WAYS = ("driver", "slices", "ranges")
"""By this process, by Spark's tasks for slices of the keys, and by ranges of the tables' blocks."""


def read_by(way: str, patch: pytest.MonkeyPatch) -> None:
    """Make attempts that touch anything read in one way, by the bounds between the ways."""
    if way == "driver":
        return
    patch.setattr("mcq_analytics.compute.inputs.DRIVER_ROWS", 0)
    share = math.inf if way == "slices" else 0
    patch.setattr("mcq_analytics.compute.touched.SCANNED_SHARE", share)
    # Several splits, as far as the tables have blocks.
    patch.setattr("mcq_analytics.compute.inputs.KEYS_PER_SPLIT", 100)
    patch.setattr("mcq_analytics.compute.inputs.ROWS_PER_SPLIT", 500)
