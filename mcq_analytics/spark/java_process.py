"""Starting Spark's Java: when a session needs it, or earlier, while other things are going on."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from py4j.java_gateway import JavaGateway
from pyspark import SparkConf
from pyspark.java_gateway import launch_gateway


@dataclass(frozen=True)
class _Start:
    """A start in the background, for the settings in `config`."""

    config: Mapping[str, str]
    gateway: Future[JavaGateway] = field(default_factory=Future)


_SHELL = "pyspark-shell"
"""The argument by which Java's command line is known."""

_starts: list[_Start] = []
"""The start in the background that no session has taken over, if there is one."""


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


def start_in_background(config: Mapping[str, str], log: Path) -> None:
    """Start Java on a thread, to be taken over by the session; once per process."""
    if _starts:
        return
    start = _Start(config)
    _starts.append(start)

    def work() -> None:
        try:
            start.gateway.set_result(start_java(config, log))
        except BaseException as error:
            start.gateway.set_exception(error)

    # A daemon: a process that ends without Spark does not wait. Java ends with its standard input.
    threading.Thread(target=work, name="spark-java", daemon=True).start()
    atexit.register(_end_unused)


def java_for(config: Mapping[str, str], log: Path) -> JavaGateway:
    """Return the Java that was started in the background for these settings, or start one."""
    if _starts:
        start = _starts.pop()
        if start.config == config:
            return start.gateway.result()
        _end(start)
    return start_java(config, log)


def _end_unused() -> None:
    while _starts:
        start = _starts.pop()
        if start.gateway.done():
            _end(start)


def _end(start: _Start) -> None:
    with suppress(Exception):
        gateway = start.gateway.result()
        gateway.shutdown()
        gateway.proc.stdin.close()
