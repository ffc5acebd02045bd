"""Exact, hourly analytics of multiple-choice tests. The public functions are in `api`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mcq_analytics.api import (
        get_engine,
        get_last_successful_runs,
        get_time_range,
        initialize_spark_session_with_scaling,
        send_alert,
    )

__all__ = [
    "get_engine",
    "get_last_successful_runs",
    "get_time_range",
    "initialize_spark_session_with_scaling",
    "send_alert",
]


def __getattr__(name: str) -> object:
    """Import `api` on first use: it imports Spark, which is slow."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("mcq_analytics.api"), name)
