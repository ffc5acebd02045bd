"""Spark servers: one for all processes of the suite, and others that a test may kill."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

from mcq_analytics.spark.endpoints import FILE, Endpoint, local_endpoint
from mcq_analytics_tests.servers import children, processes, wait_until

SECONDS_TO_START = 120

COLD = {"MCQ_SPARK_WARM_UP": "false"}
"""A server that computes nothing by itself: the tests warm it."""
COMMAND = ("-m", "mcq_analytics", "spark-server")
SHORT_LIVED = (*COMMAND, "--records", "0")
"""Its Java compiles little, which pays for the tests that have a server of their own."""

_COMPUTES_ON = os.environ.get("MCQ_TEST_SPARK", "server")
"""Read once: a test does not see it, nor any other setting but its own."""

_started: list[subprocess.Popen[bytes]] = []
"""Keeps the suite's server, which outlives the tests of the process that started it."""


@dataclass(frozen=True)
class SparkServer:
    """A server under a folder of its own, as `mcq-analytics spark-server` runs it."""

    home: Path

    @property
    def endpoint(self) -> Endpoint:
        """Where it listens."""
        found = local_endpoint(self.home)
        assert found is not None
        return found

    def process(self) -> int:
        """Return the id of the process that keeps it up."""
        return int(json.loads((self.home / FILE).read_text())["process"])

    @property
    def printed(self) -> str:
        """What it has printed so far."""
        return (self.home / "server.log").read_text()

    def java(self) -> int:
        """Return the id of its Java process."""
        return java_of(self.process())

    def python_workers(self) -> list[int]:
        """Return the ids of the Python workers of its Spark."""
        return workers_of(self.java())

    def as_cluster(self, name: str) -> dict[str, str]:
        """Return the settings by which runs use it as a cluster."""
        endpoint = self.endpoint
        assert endpoint.token is not None
        return {
            "MCQ_SPARK_CLUSTER": name,
            f"SPARK_{name.upper()}_MASTER": str(endpoint),
            f"SPARK_{name.upper()}_TOKEN": endpoint.token,
        }


def java_of(process: int) -> int:
    """Return the id of the Java that a process has started, once it is there."""
    found: list[int] = []

    def spark_runs() -> bool:
        found[:] = [
            pid for pid, parent, line in processes() if parent == process and "java" in line
        ]
        return bool(found)

    wait_until(spark_runs)
    return found[0]


def workers_of(java: int) -> list[int]:
    """Return the ids of the Python workers that a Spark on this machine has started."""
    return [worker for daemon in children(java) for worker in children(daemon)]


@contextmanager
def spark_server(
    home: Path, program: Sequence[str] = SHORT_LIVED, **settings: str
) -> Iterator[SparkServer]:
    """Run a server of its own, and end it."""
    server = SparkServer(home)
    process = _start(server, os.getpid(), settings, program)
    try:
        yield server
    finally:
        process.terminate()
        process.wait(60)


def suite_server_is_used() -> bool:
    """Return whether sessions are on a server; otherwise each process starts a Java of its own."""
    return _COMPUTES_ON in ("server", "cluster")


def suite_cluster_is_used() -> bool:
    """Return whether that server computes on a standalone cluster."""
    return _COMPUTES_ON == "cluster"


def suite_server(basetemp: Path, **settings: str) -> SparkServer:
    """Return the server of the suite; start it if need be. It ends with the suite's process."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    home = (basetemp.parent if worker else basetemp) / "spark-server"
    home.mkdir(exist_ok=True)
    server = SparkServer(home)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if local_endpoint(home) is None:
            _started.append(_start(server, os.getppid() if worker else os.getpid(), settings))
    return server


def _start(
    server: SparkServer, follow: int, settings: dict[str, str], program: Sequence[str] = COMMAND
) -> subprocess.Popen[bytes]:
    own = {
        "MCQ_HOME": str(server.home),
        "MCQ_SPARK_CLUSTER": "local",
        "SPARK_LOCAL_MASTER": "local[2,3]",
        **COLD,
    }
    server.home.mkdir(exist_ok=True)
    with (server.home / "server.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *program, "--follow", str(follow)],
            env={**os.environ, **own, **settings},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    give_up = monotonic() + SECONDS_TO_START
    while local_endpoint(server.home) is None:
        assert process.poll() is None, server.printed
        assert monotonic() < give_up
        sleep(0.2)
    return process
