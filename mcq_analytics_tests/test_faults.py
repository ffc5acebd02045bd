"""Faults, injected for real at random moments: nothing is half-written, the next run is exact.

`FAULTS` sets how often each is injected; `make test-deep` sets it high. The facts of a first day
are computed; then answers come, change and go; a run over both days is hit. After it each fact is
as it was before or as it must be; the next run gives the exact tables, and of the run that was hit
nothing remains but its row in `etl_metadata`.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import sleep
from typing import Any

import pytest
from pyspark import TaskContext
from pyspark.sql import DataFrame, SparkSession
from sqlalchemy import text

from mcq_analytics.model.facts import FACTS, QUESTION_INTERACTION, IdType
from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.errors import explain
from mcq_analytics.spark.java import ensure_java
from mcq_analytics.spark.sink import copying
from mcq_analytics_tests.conftest import CHECKOUT, create_database, drop_database, made_databases
from mcq_analytics_tests.facts_of import (
    add_sample,
    contents,
    execute,
    run_facts,
    scalar,
    window,
    wrong_rows,
)
from mcq_analytics_tests.servers import (
    OwnServer,
    Proxy,
    children,
    is_running,
    processes,
    spark_cluster,
    wait_until,
)
from mcq_analytics_tests.tally import TALLY

FAULTS = int(os.environ.get("FAULTS", "1"))
FIRST_DAY = window("2024-01-01T00", "2024-01-02T00")
BOTH_DAYS = window("2024-01-01T00", "2024-01-03T00")
SESSIONS = (
    "FROM pg_stat_activity WHERE datname = current_database() "
    "AND application_name LIKE 'mcq_analytics %'"
)
DISK_FULL = "No space left on device|wrote only [0-9]+ of 8192 bytes"
ENDED = "Spark's Java process has ended|Spark does not start on the cluster"
UNDER_WAY = f"SELECT count(*) > 0 FROM analytics.running_attempt WHERE EXISTS (SELECT {SESSIONS})"


@pytest.fixture(params=range(FAULTS))
def chance(request: pytest.FixtureRequest) -> random.Random:
    """What is left to chance, the same for the same repetition of a test."""
    return random.Random(request.node.name)


@pytest.fixture(scope="module")
def template(
    own_server: OwnServer, own_templates: Callable[[IdType], str], spark: SparkSession
) -> Iterator[str]:
    """A database in which the facts of the first day are computed, and then both days change."""
    with made_databases(own_server.url(), own_templates) as make:
        database = make()
        add_sample(database, students=25, seed=3)
        run_facts(database, spark, FIRST_DAY)
        execute(
            database,
            "UPDATE answers SET submitted_option = 'A' WHERE answer_id % 3 = 0",
            "DELETE FROM answers WHERE answer_id % 7 = 0",
            "UPDATE submissions SET completion_status = 'timeout' WHERE student_id % 2 = 0",
        )
        yield str(database.url.database)


@pytest.fixture
def hit(own_server: OwnServer, template: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hit]:
    """A copy of the database, whose next run is to be hit."""
    url = create_database(own_server.url(), "faulty", template)
    # A copied sequence is safe from a crash of the server only after the next checkpoint.
    execute(Database(own_server.url(), "public", "analytics"), "CHECKPOINT")
    monkeypatch.setenv("DB_DEV_URL", url.render_as_string(hide_password=False))
    yield Hit(Database(url, "public", "analytics"))
    drop_database(url)


class Hit:
    """A database whose run is hit: what the facts were before, and what must hold after it."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.before = contents(database)
        assert wrong_rows(database) != []
        TALLY["faults injected"] += 1

    def wait_until_under_way(
        self, chance: random.Random, process: subprocess.Popen[str] | None = None
    ) -> None:
        """Wait until some random moment of an attempt, by a process where one is given."""

        def under_way() -> bool:
            if process is not None and process.poll() is not None:
                raise AssertionError(process.communicate()[1])
            return bool(scalar(self.database, UNDER_WAY))

        wait_until(under_way)
        sleep(chance.uniform(0, 1.5))

    def assert_recovers(self, spark: SparkSession, *, failed: str | None) -> None:
        """Nothing is half-written; the next run is exact and sweeps; the failure is recorded."""
        half_written = {line.split(":")[0] for line in wrong_rows(self.database)}
        now = contents(self.database)
        for fact in FACTS:
            if fact.name in half_written:
                for table in (fact.name, fact.hours_table):
                    assert now[table] == self.before[table]
        run_facts(self.database, spark, BOTH_DAYS)
        wrong = wrong_rows(self.database)
        TALLY["rows wrong"] += len(wrong)
        assert wrong == []
        assert self.count("pg_class WHERE relname LIKE 'stg%'") == 0
        assert self.count("analytics.running_attempt") == 0
        wait_until(
            lambda: (
                self.count(
                    "pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid "
                    "FROM pg_database WHERE datname = current_database())"
                )
                == 0
            )
        )
        if failed is not None:
            errors = scalar(
                self.database,
                "SELECT string_agg(error, '\n') FROM analytics.etl_metadata "
                "WHERE status = 'failed'",
            )
            assert re.search(failed, str(errors))

    def count(self, what: str) -> object:
        return scalar(self.database, f"SELECT count(*) FROM {what}")


@contextmanager
def running(database: Database, spark: SparkSession) -> Iterator[threading.Event]:
    """Run both days again and again until the event is set; at the end, raise what it raised."""
    enough = threading.Event()
    raised: list[Exception] = []

    def run() -> None:
        try:
            while not enough.is_set():
                run_facts(database, spark, BOTH_DAYS)
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield enough
    finally:
        enough.set()
        thread.join()
    if raised:
        raise raised[0]


LOST = r"terminating|closed|lost|snapshot|EOF|Broken pipe|does not exist|died|shutting|starting"


def test_a_server_process_that_is_ended_is_healed(
    hit: Hit, spark: SparkSession, chance: random.Random
) -> None:
    one = f"SELECT pid {SESSIONS} ORDER BY pid OFFSET :skip LIMIT 1"
    with running(hit.database, spark) as enough:
        hit.wait_until_under_way(chance)
        ended = False
        while not ended:
            with hit.database.engine("ender").begin() as connection:
                skip = {"skip": chance.randrange(3)}
                pid = connection.execute(text(one), skip).scalar()
                ended = pid is not None and bool(
                    connection.execute(text(f"SELECT pg_terminate_backend({pid})")).scalar()
                )
        enough.set()
    hit.assert_recovers(spark, failed=None)


def test_a_server_that_is_killed_and_started_is_healed(
    hit: Hit, spark: SparkSession, own_server: OwnServer, chance: random.Random
) -> None:
    with running(hit.database, spark) as enough:
        hit.wait_until_under_way(chance)
        own_server.kill()
        enough.set()
        sleep(chance.uniform(0, 2))
        own_server.start()
    hit.assert_recovers(spark, failed=LOST)


def test_a_connection_that_is_cut_in_the_middle_of_a_copy_is_healed(
    hit: Hit, spark: SparkSession, own_server: OwnServer, chance: random.Random
) -> None:
    proxy = Proxy(own_server.port)
    through = own_server.url(proxy.port).set(database=hit.database.url.database)
    proxy.cut_after(chance.randrange(30_000))
    run_facts(Database(through, "public", "analytics"), spark, BOTH_DAYS)
    proxy.close()
    assert proxy.cuts == 1
    hit.assert_recovers(spark, failed=None)


def test_a_python_worker_of_spark_that_is_killed_is_healed(
    hit: Hit, spark: SparkSession, chance: random.Random
) -> None:
    gateway = spark.sparkContext._gateway
    assert gateway is not None
    java = gateway.proc.pid

    def workers() -> list[int]:
        return [worker for daemon in children(java) for worker in children(daemon)]

    with running(hit.database, spark) as enough:
        hit.wait_until_under_way(chance)
        killed = False
        while not killed:
            for worker in chance.sample(workers(), 1) if workers() else []:
                os.kill(worker, signal.SIGKILL)
                killed = True
        enough.set()
    hit.assert_recovers(spark, failed=None)


def test_a_task_that_fails_after_its_copy_had_committed_doubles_nothing(
    hit: Hit, spark: SparkSession, chance: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = [chance.random() < 0.5 for _ in range(3)]
    fails[chance.randrange(3)] = True
    spark.conf.set("spark.sql.adaptive.enabled", "false")

    def copy_and_fail(frame: DataFrame, url: str, schema: str, table: str) -> list[int]:
        def fail(batches: Iterator[Any]) -> Iterator[Any]:
            yield from batches
            context = TaskContext.get()
            assert context is not None
            if context.attemptNumber() == 0 and fails[context.partitionId() % 3]:
                raise RuntimeError("the task fails after its copy")

        copied = copying(frame.repartition(3), url, schema, table)
        tasks = [row[0] for row in copied.mapInArrow(fail, copied.schema).collect()]
        assert scalar(hit.database, f'SELECT count(*) FROM {schema}."{table}"') != scalar(
            hit.database,
            f'SELECT count(*) FROM {schema}."{table}" WHERE task_attempt_id = ANY(ARRAY{tasks})',
        )
        return tasks

    monkeypatch.setattr("mcq_analytics.compute.attempt.copy_to_staging", copy_and_fail)
    run_facts(hit.database, spark, BOTH_DAYS, [QUESTION_INTERACTION])
    spark.conf.set("spark.sql.adaptive.enabled", "true")
    monkeypatch.undo()
    assert not any(line.startswith("question") for line in wrong_rows(hit.database))
    hit.assert_recovers(spark, failed=None)


@pytest.fixture
def small_disk(hit: Hit, own_server: OwnServer) -> Iterator[Path]:
    """A disk of three megabytes for all new tables of the database that is hit."""
    directory = Path(tempfile.mkdtemp(prefix="mcq_small_disk_"))
    mount = ["mount", "-t", "tmpfs", "-o", "size=3M,mode=777", "tmpfs", str(directory)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        directory.rmdir()
        pytest.skip("a small disk can be made by root alone")
    space = directory / "space"
    space.mkdir()
    shutil.chown(space, own_server.user)

    def alter(*statements: str) -> None:
        with hit.database.engine().connect() as connection:
            autocommit = connection.execution_options(isolation_level="AUTOCOMMIT")
            for statement in statements:
                autocommit.exec_driver_sql(statement)

    alter(
        f"CREATE TABLESPACE small LOCATION '{space}'",
        f"ALTER DATABASE {hit.database.url.database} SET default_tablespace TO small",
    )
    yield directory
    alter(
        f"ALTER DATABASE {hit.database.url.database} RESET default_tablespace",
        "DROP TABLESPACE small",
    )
    subprocess.run(["umount", str(directory)], check=True)
    directory.rmdir()


def test_a_disk_that_fills_up_is_told_with_the_remedy(
    hit: Hit, small_disk: Path, spark: SparkSession, chance: random.Random
) -> None:
    filler = small_disk / "filler"
    free = shutil.disk_usage(small_disk).free
    filler.write_bytes(bytes(free - chance.randrange(16 * 1024, 128 * 1024)))
    with pytest.raises(Exception, match=DISK_FULL) as failure:
        run_facts(hit.database, spark, BOTH_DAYS)
    shown = str(explain(failure.value, "the run"))
    assert "the disk is full" in shown
    assert "free space in the tablespace of the fact schema" in shown
    assert "\n" not in shown
    filler.unlink()
    hit.assert_recovers(spark, failed=DISK_FULL)


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
def test_a_run_whose_process_is_killed_is_swept_and_recorded_by_the_next(
    hit: Hit, spark: SparkSession, chance: random.Random
) -> None:
    with command() as process:
        java = java_of(process)
        hit.wait_until_under_way(chance, process)
        sleep(chance.uniform(0, 6))
        process.kill()
        wait_until(lambda: not is_running(java))
    hit.assert_recovers(spark, failed="the process died, or lost the database")


@pytest.mark.usefixtures("instance")
def test_a_run_whose_java_is_killed_says_so_in_one_line(
    hit: Hit, spark: SparkSession, chance: random.Random
) -> None:
    with command() as process:
        java = java_of(process)
        hit.wait_until_under_way(chance, process)
        sleep(chance.uniform(0, 6))
        os.kill(java, signal.SIGKILL)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 1, errors
        # Threads of PySpark may have their own say before.
        assert re.search(rf"^error: .*({ENDED})", errors.splitlines()[-1])
    hit.assert_recovers(spark, failed=f"{ENDED}|before its rows were stored")


SPECULATION = (
    "spark.speculation=true;spark.speculation.interval=50ms;spark.speculation.quantile=0.1;"
    "spark.speculation.multiplier=1.1;spark.speculation.minTaskRuntime=0ms;"
    "spark.executor.memory=512m;spark.executor.cores=1;spark.dynamicAllocation.minExecutors=2;"
    "spark.driver.host=127.0.0.1;spark.driver.bindAddress=127.0.0.1;spark.ui.enabled=false"
)


@pytest.mark.timeout(0)
@pytest.mark.skipif(FAULTS < 2, reason="make test-deep has the time for a cluster")
@pytest.mark.skipif(sys.platform != "linux", reason="loopback has one address here")
def test_a_speculative_copy_of_a_task_doubles_nothing(
    hit: Hit, spark: SparkSession, tmp_path: Path
) -> None:
    """On a cluster: one machine alone never runs a task twice at a time."""
    with spark_cluster(tmp_path, ensure_java(tmp_path)) as master:
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
                "SPARK_LAB_MASTER": master,
                "SPARK_LAB_CONF": SPECULATION,
            },
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("doubled in staging") == FAULTS
    assert not any(line.startswith("question") for line in wrong_rows(hit.database))
    hit.assert_recovers(spark, failed=None)
