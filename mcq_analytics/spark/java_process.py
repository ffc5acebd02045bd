"""Starting and ending Spark's Java."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Timer

import psutil
from py4j.java_gateway import JavaGateway
from pyspark import SparkConf, SparkContext
from pyspark.java_gateway import launch_gateway

_SHELL = "pyspark-shell"
"""The argument by which Java's command line is known."""

SECONDS_TO_END = 30.0
"""A Java that does not end within so many seconds is killed."""


def start_java(config: Mapping[str, str], log: Path) -> JavaGateway:
    """Start Java for a session with some settings; its output goes to a file.

    If the start is interrupted, Java is ended: pyspark removes the file that it would report to,
    and Java would run on for ever.

    Raises:
        pyspark.errors.PySparkException, OSError, RuntimeError: Java does not start.

    """
    this = psutil.Process()
    before = set(this.children())
    try:
        with log.open("ab") as stderr:
            return launch_gateway(SparkConf().setAll(list(config.items())), {"stderr": stderr})
    except BaseException:
        for process in set(this.children()) - before:
            with suppress(psutil.NoSuchProcess):
                # Other threads start processes too.
                if _SHELL in process.cmdline():
                    process.kill()
        raise


def end_session() -> None:
    """End the process's Spark session and its Java: the next session starts another."""
    context, gateway = SparkContext._active_spark_context, SparkContext._gateway
    if gateway is None:
        return
    # Every call into Java waits for its answer, without a limit.
    killing = Timer(SECONDS_TO_END, gateway.proc.kill)
    killing.start()
    try:
        with suppress(Exception):
            if context is not None:
                context.stop()
        # If Java has died, the context cannot be stopped.
        SparkContext._active_spark_context = SparkContext._gateway = SparkContext._jvm = None
        with suppress(Exception):
            gateway.shutdown()
            gateway.proc.stdin.close()
            gateway.proc.wait()
    finally:
        killing.cancel()
