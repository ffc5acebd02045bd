"""A standalone Spark cluster on loopback: a master, and workers that come and go."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyspark

from mcq_analytics_tests.servers import CHECKOUT, free_port, listens, processes, wait_until

SPARK_HOME = Path(pyspark.__file__).parent
HOSTS = ("127.0.0.1", "127.0.0.2" if sys.platform == "linux" else "127.0.0.1")
"""Workers have addresses of their own, because Spark runs a copy of a task only at another one."""
_LEFT_OUT = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
"""Bytecode shows a test where a Python has imported from."""
SHORT_LIVED_JAVA = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
"""Options for a Java that ends before it would have compiled much."""
EXECUTOR = "CoarseGrainedExecutorBackend"


class Cluster:
    """A master and its workers, each a process of its own."""

    def __init__(self, directory: Path, java_home: Path) -> None:
        self.directory = directory
        self._environment = {
            **{name: value for name, value in os.environ.items() if name not in _LEFT_OUT},
            "JAVA_HOME": str(java_home),
            "SPARK_HOME": str(SPARK_HOME),
            "SPARK_LOCAL_IP": "127.0.0.1",
            "SPARK_DAEMON_JAVA_OPTS": SHORT_LIVED_JAVA,
        }
        port = free_port()
        self.master = f"spark://127.0.0.1:{port}"
        self._page = free_port()
        self._processes = [
            self._started(
                "master.Master",
                *("--host", "127.0.0.1", "--port", str(port), "--webui-port", str(self._page)),
            )
        ]
        self.workers: list[subprocess.Popen[bytes]] = []
        self._pages: dict[int, str] = {}
        wait_until(lambda: listens(port) and self._is_up())

    def add_worker(self, cores: int = 1) -> subprocess.Popen[bytes]:
        """Start a worker, and wait until the master knows it."""
        known = self.known_workers()
        host, page = HOSTS[len(self.workers) % 2], free_port()
        worker = self._started(
            "worker.Worker",
            *("--host", host, "--cores", str(cores), "--memory", "2g"),
            *("--work-dir", str(self.directory), "--webui-port", str(page), self.master),
        )
        self._processes.append(worker)
        self._pages[worker.pid] = f"http://127.0.0.1:{page}/"
        self.workers.append(worker)
        wait_until(lambda: self.known_workers() > known)
        return worker

    def remove_worker(self, worker: subprocess.Popen[bytes]) -> None:
        """Kill a worker, whose executors end with it, and wait until the master has noticed."""
        known = self.known_workers()
        worker.kill()
        worker.wait()
        self.workers.remove(worker)
        wait_until(lambda: self.known_workers() < known)

    def known_workers(self) -> int:
        """Return how many workers the master counts on."""
        workers = _json_at(f"http://127.0.0.1:{self._page}/json/")["workers"]
        return sum(worker["state"] == "ALIVE" for worker in workers)

    def _is_up(self) -> bool:
        # While Spark starts, nothing answers, or a page of text.
        with suppress(OSError, ValueError):
            return self.known_workers() == 0
        return False

    def pages(self) -> list[str]:
        """Return the addresses of the pages of the master and the workers."""
        return [f"http://127.0.0.1:{self._page}/", *(self._pages[one.pid] for one in self.workers)]

    def settings(self, name: str, **conf: str) -> dict[str, str]:
        """Return the settings by which an application computes on it as a named cluster.

        `conf` are more of Spark's settings.
        """
        return {
            "MCQ_SPARK_CLUSTER": name,
            f"SPARK_{name.upper()}_MASTER": self.master,
            f"SPARK_{name.upper()}_CONF": conf_of_cluster(**conf),
        }

    def executors(self) -> list[int]:
        """Return the ids of the executors' processes."""
        return [
            pid
            for worker in self.workers
            for pid, parent, line in processes()
            if parent == worker.pid and EXECUTOR in line
        ]

    def end(self) -> None:
        """End all processes; executors end with their workers."""
        for process in reversed(self._processes):
            process.kill()
            process.wait()
        wait_until(
            lambda: not any(EXECUTOR in line and self.master in line for *_, line in processes())
        )

    def _started(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.directory / "log").open("ab") as log:
            return subprocess.Popen(
                [
                    str(SPARK_HOME / "bin" / "spark-class"),
                    f"org.apache.spark.deploy.{name}",
                    *arguments,
                ],
                stdout=log,
                stderr=log,
                env=self._environment,
            )


@contextmanager
def spark_cluster(directory: Path, java_home: Path, cores: int = 1) -> Iterator[Cluster]:
    """Run a cluster of two workers with some cores each."""
    directory.mkdir(exist_ok=True)
    cluster = Cluster(directory, java_home)
    try:
        for _ in range(2):
            cluster.add_worker(cores)
        yield cluster
    finally:
        cluster.end()


def conf_of_cluster(**more: str) -> str:
    """Return Spark's settings for an application on the cluster, and more, as SPARK_<NAME>_CONF.

    An empty one is left out.
    """
    conf = {
        "spark.executor.memory": "512m",
        "spark.executor.cores": "1",
        "spark.executor.extraJavaOptions": SHORT_LIVED_JAVA,
        "spark.driver.extraJavaOptions": SHORT_LIVED_JAVA,
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.executorEnv.PYTHONPATH": str(CHECKOUT),
        "spark.dynamicAllocation.executorIdleTimeout": "3s",
        "spark.dynamicAllocation.shuffleTracking.timeout": "3s",
        **more,
    }
    return ";".join(f"{name}={value}" for name, value in conf.items() if value)


def python_environment(directory: Path, version: str | None) -> Path:
    """Make a Python with the packages of this one, but another version of ours, or none of it.

    Return its interpreter.
    """
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", "--symlinks", str(directory)], check=True
    )
    here = Path(sysconfig.get_path("purelib"))
    [there] = directory.glob("lib/python*/site-packages")
    for entry in here.iterdir():
        if not entry.name.startswith(("mcq_analytics", "__editable__")):
            (there / entry.name).symlink_to(entry)
    if version is not None:
        (there / "mcq_analytics").symlink_to(CHECKOUT / "mcq_analytics")
        described = there / f"mcq_analytics-{version}.dist-info"
        described.mkdir()
        (described / "METADATA").write_text(f"Name: mcq_analytics\nVersion: {version}\n")
    return directory / "bin" / "python"


def executors_of(page: int) -> int | None:
    """Return how many executors an application has, by Spark's REST API at a port; None if it is
    not up.
    """
    root = f"http://127.0.0.1:{page}/api/v1/applications"
    # While Spark starts, it answers with a page of text.
    with suppress(OSError, ValueError):
        for application in _json_at(root):
            executors = _json_at(f"{root}/{application['id']}/executors")
            return len([one for one in executors if one["id"] != "driver"])
    return None


def _json_at(address: str) -> Any:
    with urllib.request.urlopen(address, timeout=5) as answer:  # noqa: S310
        return json.load(answer)
