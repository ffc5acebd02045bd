"""Exact, hourly analytics of multiple-choice tests: the public names. All else is in submodules.

The names are loaded when they are first used, since some bring Spark with them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mcq_analytics.alerting.send import send_alert
    from mcq_analytics.postgres.database import get_engine
    from mcq_analytics.postgres.metadata import get_last_successful_runs, get_time_range
    from mcq_analytics.spark.session import initialize_spark_session_with_scaling

__all__ = [
    "get_engine",
    "get_last_successful_runs",
    "get_time_range",
    "initialize_spark_session_with_scaling",
    "send_alert",
]

_HOMES = {
    "get_engine": "mcq_analytics.postgres.database",
    "get_last_successful_runs": "mcq_analytics.postgres.metadata",
    "get_time_range": "mcq_analytics.postgres.metadata",
    "initialize_spark_session_with_scaling": "mcq_analytics.spark.session",
    "send_alert": "mcq_analytics.alerting.send",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
