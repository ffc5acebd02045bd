"""Starting Spark while Python imports Dagster and the database finds what is touched."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

from pyspark.sql import SparkSession

from mcq_analytics.spark.connect import disconnect
from mcq_analytics.spark.java_process import end_session


@dataclass(frozen=True)
class EarlyStart:
    """A start in the background, for the settings in `config`."""

    config: Mapping[str, str]
    session: Future[SparkSession] = field(default_factory=Future)


_starts: list[EarlyStart] = []
"""The start in the background that nobody has taken over, if there is one."""


def start_in_background(config: Mapping[str, str], start: Callable[[], SparkSession]) -> None:
    """Start a session on a thread, to be taken over by `take_over`; once per process."""
    if _starts:
        return
    early = EarlyStart(config)
    _starts.append(early)

    def work() -> None:
        try:
            early.session.set_result(start())
        except BaseException as error:
            early.session.set_exception(error)

    # A daemon: a process that ends without Spark does not wait. Java ends with its standard input.
    threading.Thread(target=work, name="spark-start", daemon=True).start()
    atexit.register(_end_unused)


def take_over() -> EarlyStart | None:
    """Return the start in the background, if there is one and nobody has asked before."""
    return _starts.pop() if _starts else None


def _end_unused() -> None:
    early = take_over()
    if early is not None and early.session.done() and early.session.exception() is None:
        disconnect()
        end_session()
