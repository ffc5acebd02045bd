"""What a run needs of Spark: a server or master that answers, and executors that can work."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, TypeVar

import pyspark
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.functions import spark_partition_id

from mcq_analytics.doctor.findings import Finding, fine, judged, of_clocks, of_disk, wrong
from mcq_analytics.doctor.look import LOOK
from mcq_analytics.errors import McqError
from mcq_analytics.postgres.task_errors import installed_version, telling_the_driver
from mcq_analytics.settings.spark import SparkSettings
from mcq_analytics.spark.connect import connected_to, disconnect
from mcq_analytics.spark.java_process import end_session
from mcq_analytics.spark.session import spark_session

if TYPE_CHECKING:
    import pyarrow as pa

Result = TypeVar("Result")

SECONDS_TO_REACH = 5.0
SECONDS_TO_BEGIN = 120.0
"""How long a session, and then an executor, may take to begin; Spark itself waits for ever."""
MOST_TASKS = 16
"""So many tasks look around: several for each of many executors."""


def examine_master(settings: SparkSettings) -> Iterator[Finding]:
    """Yield whether a cluster's master or Spark server can be reached, if it has an address."""
    master = settings.master or ""
    if master.startswith("yarn") and not {"HADOOP_CONF_DIR", "YARN_CONF_DIR"} & os.environ.keys():
        yield wrong("Spark", "HADOOP_CONF_DIR is not set: point it to the settings of YARN")
    if settings.connect is not None:
        host, port, _ = settings.connect
        yield _reached("server", host, port, settings.cluster)
    for host, port in re.findall(r"(?:^spark://|,|^k8s://(?:https?://)?)([^,:/]+):(\d+)", master):
        yield _reached("master", host, int(port), settings.cluster)


def _reached(what: str, host: str, port: int, cluster: str) -> Finding:
    try:
        socket.create_connection((host, port), SECONDS_TO_REACH).close()
    except OSError as error:
        return wrong(
            "Spark",
            f"its {what} {host}:{port} cannot be reached ({error.strerror or error}): start it, or "
            f"correct SPARK_{cluster.upper().replace('-', '_')}_MASTER",
        )
    return fine("Spark", f"its {what} {host}:{port} can be reached")


class Spark:
    """The session of a run, begun by `examine_session`; `end` ends it."""

    def __init__(self, settings: SparkSettings, home: Path) -> None:
        self._settings = settings
        self._home = home
        self._session: SparkSession | None = None
        self.tasks: int | None = None
        """How many tasks it runs at once, at most; None before it begins."""

    def examine_session(self) -> Iterator[Finding]:
        """Begin the session, and yield where it computes and with which version of Spark.

        Raises:
            McqError: there is no Java, a server refuses, or Spark does not start.

        """
        session = self._within_time(
            "Spark has not begun", lambda: spark_session(self._settings, self._home, 0)
        )
        here, place = pyspark.__version__, connected_to() or "in the process of a run"
        yield judged(
            "Spark",
            session.version == here,
            f"version {session.version}, {place}",
            f"it is {here} where the run is: install the same version",
        )
        self.tasks = self._within_time("no executor has begun", lambda: _tasks_at_once(session))
        self._session = session

    def examine_executors(self, conninfo: str) -> Iterator[Finding]:
        """Yield what tasks see of package, PostgreSQL, clock and disk where they run.

        Raises:
            McqError: no executor begins to work, or a task cannot do what those of a run do.

        """
        if self._session is None or self.tasks is None:
            return
        looks = looking(self._session, min(self.tasks, MOST_TASKS), conninfo)
        rows = self._within_time("no executor has begun", looks.collect)
        of_host = {row["host"]: row for row in rows}
        executors = len({(row["host"], row["executor"]) for row in rows})
        python = ".".join(map(str, sys.version_info[:2]))
        yield fine(
            "executors",
            f"{len(rows)} tasks ran in {executors} on {', '.join(sorted(of_host))}, with this "
            f"mcq_analytics and Python {python}; each reached PostgreSQL",
        )
        here = pyspark.__version__
        for host, row in sorted(of_host.items()):
            if row["spark"] != here:
                said = f"{host} has Spark {row['spark']}, and {here} is where the run is"
                yield wrong("executors", f"{said}: install the same version")
            yield of_clocks(host, "PostgreSQL", row["ahead"])
            yield of_disk(f"the executors' folder on {host}", row["free"])

    def end(self) -> None:
        """End the session, and with it its executors."""
        disconnect()
        end_session()

    def _within_time(self, otherwise: str, work: Callable[[], Result]) -> Result:
        """Return the result of some work, or raise an `McqError` if it takes too long."""
        found: Future[Result] = Future()

        def run() -> None:
            try:
                found.set_result(work())
            except BaseException as error:
                found.set_exception(error)

        Thread(target=run, daemon=True).start()
        try:
            return found.result(SECONDS_TO_BEGIN)
        except FutureTimeoutError:
            cores, memory = self._settings.executor_cores, self._settings.executor_memory
            raise McqError(
                f"{otherwise} after {SECONDS_TO_BEGIN:.0f} s: check that the cluster has {cores} "
                f"cores and {memory} for an executor (MCQ_SPARK_EXECUTOR_CORES, "
                "MCQ_SPARK_EXECUTOR_MEMORY), and that executors reach the driver "
                "(spark.driver.host); its log has more"
            ) from None


def looking(spark: SparkSession, tasks: int, conninfo: str) -> DataFrame:
    """Return a DataFrame with a row for each of some tasks: what it sees around it."""
    version = installed_version()

    def look(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        with telling_the_driver(conninfo, version=version):
            from mcq_analytics.doctor.look import look_around  # noqa: PLC0415  (in its worker)

            for _ in batches:
                yield look_around(conninfo)

    return spark.range(0, tasks, 1, tasks).mapInArrow(look, LOOK)


def _tasks_at_once(session: SparkSession) -> int:
    if str(session.conf.get("spark.master")).startswith("local"):
        # Without a number, Spark makes a partition for each task that it can run at once.
        return session.range(10_000).select(spark_partition_id()).distinct().count()
    executors = int(session.conf.get("spark.dynamicAllocation.maxExecutors", "1") or 1)
    return executors * int(session.conf.get("spark.executor.cores", "1") or 1)
