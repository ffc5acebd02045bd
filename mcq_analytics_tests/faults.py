"""Runs to inject faults into, and the checks after a fault.

The facts of a first day are computed; then answers are added, changed and deleted; the fault hits a
run over both days. At no time do the facts disagree with each other; after the fault they are as
before, all of them, or exact. The next run makes them exact and leaves nothing of the run that was
hit but its rows in `etl_metadata`.
"""

from __future__ import annotations

import random
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import sleep

import pytest
from pyspark.sql import SparkSession
from sqlalchemy.engine import URL

from mcq_analytics.model.facts import IdType
from mcq_analytics.postgres.database import Database
from mcq_analytics_tests.conftest import create_database, drop_database, made_databases
from mcq_analytics_tests.disagreements import disagreements_now, looking
from mcq_analytics_tests.facts_of import (
    add_sample,
    contents,
    execute,
    run_facts,
    scalar,
    window,
    wrong_rows,
)
from mcq_analytics_tests.servers import wait_until
from mcq_analytics_tests.tally import TALLY

FIRST_DAY = window("2024-01-01T00", "2024-01-02T00")
BOTH_DAYS = window("2024-01-01T00", "2024-01-03T00")
SESSIONS = (
    "FROM pg_stat_activity WHERE datname = current_database() "
    "AND application_name LIKE 'mcq_analytics %'"
)
UNDER_WAY = f"SELECT count(*) > 0 FROM analytics.running_attempt WHERE EXISTS (SELECT {SESSIONS})"


@contextmanager
def changed_database(
    server: URL, templates: Callable[[IdType], str], spark: SparkSession
) -> Iterator[str]:
    """Yield a database in which the facts of the first day are computed, and both days changed."""
    with made_databases(server, templates) as make:
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


@contextmanager
def copy_to_hit(server: URL, template: str, patch: pytest.MonkeyPatch) -> Iterator[Hit]:
    """Yield a copy of the changed database, which DB_DEV_URL names; its next run will be hit."""
    url = create_database(server, "faulty", template)
    # A copied sequence is safe from a crash of the server only after the next checkpoint.
    execute(Database(server, "public", "analytics"), "CHECKPOINT")
    patch.setenv("DB_DEV_URL", url.render_as_string(hide_password=False))
    database = Database(url, "public", "analytics")
    with looking(database):
        yield Hit(database)
    drop_database(url)


class Hit:
    """A database whose run is hit: the facts before it, and the checks after it."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.before = contents(database)
        assert wrong_rows(database) != []
        TALLY["faults injected"] += 1

    def wait_until_under_way(
        self, chance: random.Random, process: subprocess.Popen[str] | None = None
    ) -> None:
        """Wait until a random moment of an attempt, which `process` makes if it is given."""

        def under_way() -> bool:
            if process is not None and process.poll() is not None:
                raise AssertionError(process.communicate()[1])
            return bool(scalar(self.database, UNDER_WAY))

        wait_until(under_way)
        sleep(chance.uniform(0, 1.5))

    def assert_recovers(self, spark: SparkSession, *, failed: str | None) -> None:
        """Nothing is half-written; the next run is exact and cleans up; the failure is recorded."""
        if wrong_rows(self.database):
            assert contents(self.database) == self.before
        assert disagreements_now(self.database) == []
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
            assert re.search(failed, str(errors)), errors

    def count(self, what: str) -> object:
        return scalar(self.database, f"SELECT count(*) FROM {what}")


@contextmanager
def running(database: Database, spark: SparkSession) -> Iterator[threading.Event]:
    """Run both days again and again until the event is set, then re-raise any error."""
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
