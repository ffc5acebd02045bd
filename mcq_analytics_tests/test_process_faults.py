"""Runs whose process or Java is killed, and runs on a cluster that runs a task twice."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import sleep

import pytest
from pyspark.sql import SparkSession

from mcq_analytics.spark.java import ensure_java
from mcq_analytics_tests.clusters import spark_cluster
from mcq_analytics_tests.depth import FAULTS, deep
from mcq_analytics_tests.facts_of import wrong_rows
from mcq_analytics_tests.faults import Hit
from mcq_analytics_tests.servers import CHECKOUT, is_running, processes, wait_until

pytest_plugins = ("mcq_analytics_tests.fault_fixtures",)

ENDED = "Spark's Java process has ended|Spark does not start on the cluster"
SPECULATION = (
    "spark.speculation=true;spark.speculation.interval=50ms;spark.speculation.quantile=0.1;"
    "spark.speculation.multiplier=1.1;spark.speculation.minTaskRuntime=0ms;"
    "spark.executor.memory=512m;spark.executor.cores=1;spark.dynamicAllocation.minExecutors=2;"
    "spark.driver.host=127.0.0.1;spark.driver.bindAddress=127.0.0.1;spark.ui.enabled=false"
)


@contextmanager
def command() -> Iterator[subprocess.Popen[str]]:
    """Start `mcq-analytics run` over both days in a process of its own."""
    arguments = ["run", "--start", "2024-01-01", "--end", "2024-01-03"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mcq_analytics", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def java_of(process: subprocess.Popen[str]) -> int:
    """Return the Java process of a command's Spark session, once it is there."""
    found: list[int] = []

    def spark_runs() -> bool:
        assert process.poll() is None
        found[:] = [
            pid
            for pid, parent, line in processes()
            if parent == process.pid and "SparkSubmit" in line
        ]
        return bool(found)

    wait_until(spark_runs)
    return found[0]


@pytest.mark.usefixtures("instance")
def test_the_next_run_records_and_cleans_up_after_a_killed_one(
    hit: Hit, spark: SparkSession, chance: random.Random
) -> None:
    with command() as process:
        java = java_of(process)
        hit.wait_until_under_way(chance, process)
        sleep(chance.uniform(0, 0.5))
        process.kill()
        wait_until(lambda: not is_running(java))
    # On a fast machine it may have committed.
    died = "the process died, or lost the database"
    hit.assert_recovers(spark, failed=died if wrong_rows(hit.database) else None)


@pytest.mark.usefixtures("instance")
def test_a_run_whose_java_is_killed_reports_it_in_one_line(
    hit: Hit, spark: SparkSession, chance: random.Random
) -> None:
    with command() as process:
        java = java_of(process)
        hit.wait_until_under_way(chance, process)
        sleep(chance.uniform(0, 0.5))
        os.kill(java, signal.SIGKILL)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 1, errors
        # Threads of PySpark may print lines before.
        assert re.search(rf"^error: .*({ENDED})", errors.splitlines()[-1])
    hit.assert_recovers(spark, failed=f"{ENDED}|before its rows were stored")


@pytest.mark.timeout(0)
@deep
@pytest.mark.skipif(sys.platform != "linux", reason="loopback has one address here")
def test_a_speculative_copy_of_a_task_doubles_nothing(
    hit: Hit, spark: SparkSession, tmp_path: Path
) -> None:
    """Needs a cluster: Spark in one process never runs a task twice at the same time."""
    with spark_cluster(tmp_path, ensure_java(tmp_path)) as cluster:
        done = subprocess.run(
            [sys.executable, "-m", "mcq_analytics_tests.speculating", str(FAULTS)],
            check=False,
            capture_output=True,
            text=True,
            timeout=120 + 60 * FAULTS,
            env={
                **os.environ,
                "PYTHONPATH": str(CHECKOUT),
                "MCQ_SPARK_CLUSTER": "lab",
                "SPARK_LAB_MASTER": cluster.master,
                "SPARK_LAB_CONF": SPECULATION,
            },
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("doubled in staging") == FAULTS
    assert wrong_rows(hit.database) == []
    hit.assert_recovers(spark, failed=None)
