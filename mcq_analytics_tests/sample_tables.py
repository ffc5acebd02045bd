"""Generated samples for tests, and short ways to look into their columns."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mcq_analytics.sample import generator

START = datetime(2024, 1, 1, tzinfo=timezone.utc)
HOURS = 24 * 60
ENTITIES = ("answer", "student", "question", "test", "session")
TABLES = ("answers", "questions", "sessions", "submissions")
TIMES = (("answers", "timestamp"), ("sessions", "expiry_time"), ("submissions", "submit_time"))
PAIR = ["student_id", "test_id"]

Array = npt.NDArray[Any]


def sample(**changes: Any) -> generator.SampleTables:
    """Return a sample, by default of 50 students over two days."""
    arguments: dict[str, Any] = {"students": 50, "start": START, "hours": 48, "seed": 1}
    return generator.generate_sample(**(arguments | changes))


def values(table: pa.Table, column: str) -> Array:
    """Return a column as a NumPy array."""
    array: Array = table[column].to_numpy()
    return array


def seconds(table: pa.Table, column: str) -> Array:
    """Return a column of times as seconds since 1970."""
    return values(table, column).astype("datetime64[us]").astype(np.int64) / 1e6


def null_share(table: pa.Table, column: str) -> float:
    """Return the share of nulls in a column."""
    return float(table[column].null_count / table.num_rows)


def repeats(table: pa.Table, columns: list[str]) -> Array:
    """Return how often each combination of values occurs."""
    return values(table.group_by(columns).aggregate([([], "count_all")]), "count_all")
