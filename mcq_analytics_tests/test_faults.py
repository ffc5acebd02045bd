"""Faults of server, disk and Spark, injected at random moments: the next run is exact."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from time import sleep
from typing import Any

import pytest
from pyspark import TaskContext
from pyspark.sql import DataFrame, SparkSession
from sqlalchemy import text
from sqlalchemy.engine import Engine
from sqlalchemy.exc import OperationalError

from mcq_analytics.compute import attempt
from mcq_analytics.compute.lock import LockSession
from mcq_analytics.postgres.base_snapshot import BaseSnapshot, base_snapshot
from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.errors import explain
from mcq_analytics.spark.parts import HOURS
from mcq_analytics.spark.sink import copying
from mcq_analytics_tests.attempts_at_nine import statuses
from mcq_analytics_tests.facts_of import run_facts, scalar, wrong_rows
from mcq_analytics_tests.faults import (
    BOTH_DAYS,
    SESSIONS,
    Hit,
    running,
)
from mcq_analytics_tests.reading import WAYS, read_by
from mcq_analytics_tests.servers import OwnServer, Proxy

pytest_plugins = ("mcq_analytics_tests.fault_fixtures",)

DISK_FULL = "No space left on device|wrote only [0-9]+ of 8192 bytes"
LOST = (
    r"terminating|closed|lost|snapshot|EOF|Broken pipe|does not exist|died|shutting|starting|"
    r"Connection refused"
)


def test_a_run_survives_the_end_of_its_server_process(
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


def test_a_run_survives_a_server_that_is_killed_and_restarted(
    hit: Hit, spark: SparkSession, own_server: OwnServer, chance: random.Random
) -> None:
    with running(hit.database, spark) as enough:
        hit.wait_until_under_way(chance)
        own_server.kill()
        enough.set()
        sleep(chance.uniform(0, 2))
        own_server.start()
    hit.assert_recovers(spark, failed=LOST)


def test_trials_that_found_no_server_are_recorded_once_it_is_back(
    hit: Hit, spark: SparkSession, own_server: OwnServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first trial loses the server before it is announced; the second cannot connect."""
    opens = LockSession.open
    opened: list[bool] = []

    def open_and_note(session: LockSession) -> None:
        opened.append(False)
        try:
            opens(session)
        except OperationalError:
            # The first trial has tried to record its failure, and the second has begun.
            if len(opened) == 3:
                own_server.start()
            raise
        opened[-1] = True

    def take_once_killed(engine: Engine, schema: str) -> AbstractContextManager[BaseSnapshot]:
        if len(opened) == 1:
            own_server.kill()
        return base_snapshot(engine, schema)

    monkeypatch.setattr(LockSession, "open", open_and_note)
    monkeypatch.setattr(attempt, "base_snapshot", take_once_killed)
    run_facts(hit.database, spark, BOTH_DAYS)
    monkeypatch.undo()
    assert opened == [True, False, False, True]
    assert statuses(hit.database) == ["success", "failed", "failed", "success"]
    hit.assert_recovers(spark, failed="Connection refused")


def test_a_run_survives_a_connection_that_is_cut_during_a_copy(
    hit: Hit, spark: SparkSession, own_server: OwnServer, chance: random.Random
) -> None:
    proxy = Proxy(own_server.port)
    through = own_server.url(proxy.port).set(database=hit.database.url.database)
    proxy.cut_after(chance.randrange(30_000))
    run_facts(Database(through, "public", "analytics"), spark, BOTH_DAYS)
    proxy.close()
    assert proxy.cuts == 1
    hit.assert_recovers(spark, failed=None)


def test_a_run_survives_a_python_worker_that_is_killed(
    hit: Hit,
    spark: SparkSession,
    python_workers: Callable[[], list[int]],
    chance: random.Random,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read_by(chance.choice(WAYS[1:]), monkeypatch)
    with running(hit.database, spark) as enough:
        hit.wait_until_under_way(chance)
        killed = False
        while not killed:
            for worker in (found := python_workers()) and chance.sample(found, 1):
                os.kill(worker, signal.SIGKILL)
                killed = True
        enough.set()
    hit.assert_recovers(spark, failed=None)


def test_tasks_that_fail_after_their_copy_committed_double_nothing(
    hit: Hit, spark: SparkSession, chance: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_by(chance.choice(WAYS[1:]), monkeypatch)
    fails = [chance.random() < 0.5 for _ in range(3)]
    fails[chance.randrange(3)] = True
    spark.conf.set("spark.sql.adaptive.enabled", "false")

    def copy_and_fail(
        frame: DataFrame, url: str, schema: str, tables: Mapping[str, str]
    ) -> list[int]:
        def fail(batches: Iterator[Any]) -> Iterator[Any]:
            yield from batches
            context = TaskContext.get()
            assert context is not None
            if context.attemptNumber() == 0 and fails[context.partitionId() % 3]:
                raise RuntimeError("the task fails after its copy")

        copied = copying(frame.repartition(3), url, schema, tables)
        tasks = [row[0] for row in copied.mapInArrow(fail, copied.schema).collect()]
        copies = f'SELECT count(*) FROM {schema}."{tables[HOURS]}"'
        counting = f"{copies} WHERE task_attempt_id = ANY(ARRAY{tasks})"
        assert scalar(hit.database, copies) != scalar(hit.database, counting)
        return tasks

    monkeypatch.setattr("mcq_analytics.compute.attempt.copy_to_staging", copy_and_fail)
    run_facts(hit.database, spark, BOTH_DAYS)
    spark.conf.set("spark.sql.adaptive.enabled", "true")
    monkeypatch.undo()
    assert wrong_rows(hit.database) == []
    hit.assert_recovers(spark, failed=None)


@pytest.fixture
def small_disk(hit: Hit, own_server: OwnServer) -> Iterator[Path]:
    """A disk of three megabytes, which holds all new tables of the database."""
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


def test_a_full_disk_is_reported_with_the_remedy(
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
