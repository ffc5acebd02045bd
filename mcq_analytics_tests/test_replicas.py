"""Reading from a streaming replica: what it may be, how far behind it may be, and its end."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from time import sleep

import pytest
from pyspark.sql import SparkSession
from sqlalchemy import text
from sqlalchemy.engine import URL

from mcq_analytics.doctor.database import examine_replica
from mcq_analytics.doctor.findings import Grade, carried_out
from mcq_analytics.errors import McqError
from mcq_analytics.model.base_tables import BASE_COLUMNS
from mcq_analytics.model.facts import IdType
from mcq_analytics.postgres.database import Database
from mcq_analytics.settings import load_settings
from mcq_analytics_tests.attempts_at_nine import STAGING, statuses
from mcq_analytics_tests.conftest import create_database, drop_database
from mcq_analytics_tests.facts_of import (
    add_sample,
    contents,
    execute,
    run_facts,
    scalar,
    wrong_rows,
)
from mcq_analytics_tests.faults import BOTH_DAYS, running
from mcq_analytics_tests.reading import WAYS, read_by, some_ways
from mcq_analytics_tests.servers import OwnServer, free_port, wait_until

pytest_plugins = ("mcq_analytics_tests.fault_fixtures",)

READ = (
    "SELECT coalesce(sum(seq_tup_read + coalesce(idx_tup_fetch, 0)), 0) FROM pg_stat_user_tables "
    f"WHERE schemaname = 'public' AND relname = ANY(ARRAY{list(BASE_COLUMNS)})"
)
SESSIONS = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
    "AND application_name LIKE 'mcq_analytics test-run%'"
)


@pytest.fixture(scope="module")
def replica(own_server: OwnServer) -> Iterator[OwnServer]:
    """A replica of the server that tests may kill."""
    found = OwnServer(primary=own_server)
    found.start()
    yield found
    found.end()


@pytest.fixture
def replicated(
    own_server: OwnServer, replica: OwnServer, own_templates: Callable[[IdType], str]
) -> Iterator[Database]:
    """A database with a sample, whose base tables are read at the replica."""
    url = create_database(own_server.url(), "replicated", own_templates(IdType.BIGINT))
    database = Database(url, "public", "analytics")
    add_sample(database, students=30, seed=5)
    # Nobody can connect to a database that is not there yet.
    wait_until(lambda: number_of(url, replica) == number_of(url, own_server))
    yield replace(database, read_url=at(replica, url), replica_seconds=30)
    drop_database(url)


def at(server: OwnServer, url: URL) -> URL:
    """Return the URL of the database of the same name on a server."""
    return server.url().set(database=url.database)


def number_of(url: URL, server: OwnServer) -> object:
    """Return the number of a database on a server; another of the same name has another."""
    numbered = f"SELECT max(oid::int) FROM pg_database WHERE datname = '{url.database}'"
    return scalar(Database(server.url(), "public", "analytics"), numbered)


def replay(replica: OwnServer, what: str) -> None:
    with Database(replica.url(), "public", "analytics").engine().connect() as connection:
        connection.execute(text(f"SELECT pg_wal_replay_{what}()"))


@pytest.mark.parametrize("way", some_ways(1))
def test_runs_are_exact_and_read_no_base_row_from_the_primary(
    replicated: Database, spark: SparkSession, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    read_by(way, monkeypatch)
    wait_until(lambda: scalar(replicated, SESSIONS) == 0)
    before = scalar(replicated, READ)
    first = run_facts(replicated, spark, BOTH_DAYS)
    wait_until(lambda: scalar(replicated, SESSIONS) == 0)
    assert scalar(replicated, READ) == before
    assert "replica" in first.seconds
    assert wrong_rows(replicated) == []
    execute(
        replicated,
        "DELETE FROM answers WHERE answer_id % 3 = 0",
        "UPDATE answers SET submitted_option = 'B' WHERE answer_id % 3 = 1",
        "DELETE FROM submissions WHERE student_id % 5 = 0",
    )
    run_facts(replicated, spark, BOTH_DAYS)
    assert wrong_rows(replicated) == []
    again = run_facts(replicated, spark, BOTH_DAYS)
    assert sum(counts.written for counts in again.counts.values()) == 0


def test_a_run_waits_for_a_replica_that_is_behind_and_never_reads_an_older_state(
    replicated: Database, replica: OwnServer, spark: SparkSession
) -> None:
    run_facts(replicated, spark, BOTH_DAYS)
    replay(replica, "pause")
    resuming = threading.Timer(1.5, replay, (replica, "resume"))
    try:
        execute(replicated, "DELETE FROM answers WHERE answer_id % 2 = 0")
        # A run on the primary knows of the change; the next must not take it back.
        run_facts(replace(replicated, read_url=None), spark, BOTH_DAYS)
        known = contents(replicated)
        behind = r"the replica is [\d,]+ bytes of log behind after 1 s: .*MCQ_REPLICA_TIMEOUT"
        with pytest.raises(McqError, match=behind):
            run_facts(replace(replicated, replica_seconds=1), spark, BOTH_DAYS)
        assert contents(replicated) == known
        assert statuses(replicated) == ["success", "success", "failed"]
    finally:
        resuming.start()
    report = run_facts(replicated, spark, BOTH_DAYS)
    resuming.join()
    assert report.seconds["replica"] > 1
    assert contents(replicated) == known
    assert wrong_rows(replicated) == []


def test_a_replica_that_is_behind_may_still_have_an_older_database_of_the_name(
    replicated: Database,
    replica: OwnServer,
    own_server: OwnServer,
    own_templates: Callable[[IdType], str],
    spark: SparkSession,
) -> None:
    replay(replica, "pause")
    resuming = threading.Timer(1.5, replay, (replica, "resume"))
    try:
        drop_database(replicated.url)
        create_database(own_server.url(), "replicated", own_templates(IdType.BIGINT))
        add_sample(replicated, students=10, seed=6)
        with pytest.raises(McqError, match="bytes of log behind after 1 s"):
            run_facts(replace(replicated, replica_seconds=1), spark, BOTH_DAYS)
    finally:
        resuming.start()
    run_facts(replicated, spark, BOTH_DAYS)
    resuming.join()
    assert wrong_rows(replicated) == []


def test_a_run_survives_the_death_of_its_replica(
    replicated: Database,
    replica: OwnServer,
    spark: SparkSession,
    monkeypatch: pytest.MonkeyPatch,
    chance: random.Random,
) -> None:
    read_by(chance.choice(WAYS), monkeypatch)
    with running(replicated, spark) as enough:
        wait_until(
            lambda: scalar(replicated, "SELECT count(*) FROM analytics.running_attempt") != 0
        )
        sleep(chance.uniform(0, 0.5))
        replica.kill()
        enough.set()
        replica.start()
    run_facts(replicated, spark, BOTH_DAYS)
    assert wrong_rows(replicated) == []
    assert scalar(replicated, STAGING) == 0


def test_only_a_replica_of_the_same_database_or_the_primary_itself_is_read_from(
    replicated: Database,
    replica: OwnServer,
    own_server: OwnServer,
    server: URL,
    spark: SparkSession,
) -> None:
    def refused(read_url: URL, why: str) -> None:
        with pytest.raises(McqError, match=why):
            run_facts(replace(replicated, read_url=read_url), spark, BOTH_DAYS)

    refused(server, "another database than the one that is written")
    refused(replica.url(), "another database than the one that is written")
    run_facts(replace(replicated, read_url=replicated.url), spark, BOTH_DAYS)
    assert wrong_rows(replicated) == []
    with pytest.raises(Exception, match="read-only transaction"):
        run_facts(replace(replicated, url=at(replica, replicated.url)), spark, BOTH_DAYS)
    promoted = OwnServer(primary=own_server)
    promoted.start()
    with Database(promoted.url(), "public", "analytics").engine().connect() as connection:
        assert connection.execute(text("SELECT pg_promote()")).scalar_one() is True
    refused(at(promoted, replicated.url), "no replica .any more.: it takes writes of its own")
    promoted.end()


def test_the_doctor_says_what_the_replica_is_and_whether_it_has_caught_up(
    replicated: Database, server: URL
) -> None:
    nowhere = replicated.url.set(host="127.0.0.1", port=free_port(), query={})
    for read_url, grade, words in (
        (replicated.read_url, Grade.FINE, "it has caught up"),
        (server, Grade.WRONG, "another database than the one that is written to"),
        (nowhere, Grade.WRONG, "the server cannot be reached"),
    ):
        examined = partial(examine_replica, replace(replicated, read_url=read_url))
        [found] = carried_out("replica", examined)
        assert found.grade is grade
        assert words in found.text


def test_the_replica_has_the_password_of_the_database_or_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DB_DEV_READ_URL", "postgresql://u@replica/facts")
    with pytest.raises(McqError, match="DB_DEV_READ_URL names a replica of no database"):
        load_settings()
    monkeypatch.setenv("DB_DEV_URL", "postgresql://u@primary/facts")
    monkeypatch.setenv("DB_DEV_PASSWORD", "p@ss")
    read_url = load_settings().read_url
    assert read_url is not None
    assert (read_url.host, read_url.password) == ("replica", "p@ss")
    monkeypatch.setenv("DB_DEV_READ_PASSWORD", "0ther")
    read_url = load_settings().read_url
    assert read_url is not None
    assert read_url.password == "0ther"
