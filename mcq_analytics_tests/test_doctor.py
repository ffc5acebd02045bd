"""`mcq-analytics doctor`: what is right is said so, and what is wrong is named with its remedy."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from pyspark.sql import SparkSession
from sqlalchemy import Connection, text
from sqlalchemy.engine import URL

from mcq_analytics.doctor.cluster import examine_master
from mcq_analytics.doctor.database import (
    CONNECTIONS_OF_RUN,
    examine_connections,
    examine_rights,
    examine_tables,
)
from mcq_analytics.doctor.findings import Finding, Grade, of_clocks, of_disk
from mcq_analytics.postgres.database import Database
from mcq_analytics.settings.spark import SparkSettings
from mcq_analytics_tests.facts_of import add_sample, execute, run_facts, window
from mcq_analytics_tests.reading import read_by
from mcq_analytics_tests.servers import CHECKOUT, free_port, run_roles

TASKS = 3
"""Of the suite's Spark, at once: two, and one that is just ending."""


def doctor(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "mcq_analytics", "doctor", *arguments],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), **settings},
        capture_output=True,
        text=True,
        check=False,
    )


def shown(url: URL) -> str:
    return url.render_as_string(hide_password=False)


def test_all_is_well(database: Database, of_suite_server: dict[str, str], tmp_path: Path) -> None:
    done = doctor(
        **of_suite_server, DB_DEV_URL=shown(database.url), MCQ_HOME=str(tmp_path / "home")
    )
    assert done.returncode == 0, done
    *lines, last = done.stdout.splitlines()
    assert last == "nothing is wrong"
    assert all(line.startswith(("ok    ", "note  ")) for line in lines)
    topics = [line[6:].partition(":")[0] for line in lines]
    assert {"rights", "indexes", "facts", "Spark", "connections", "executors"} < set(topics)
    [executors] = [line for line in lines if "executors: " in line]
    assert "each reached PostgreSQL" in executors


def test_each_thing_that_is_wrong_is_named_and_the_rest_is_examined(tmp_path: Path) -> None:
    master, port = free_port(), free_port()
    done = doctor(
        "--cluster",
        "lab",
        SPARK_LAB_MASTER=f"spark://127.0.0.1:{master}",
        DB_DEV_URL=f"postgresql://nobody@127.0.0.1:{port}/none",
        MCQ_HOME=str(tmp_path / "home"),
    )
    assert done.returncode == 1
    assert done.stderr == ""
    *lines, last = done.stdout.splitlines()
    assert last == "2 things to mend"
    wrong = [line for line in lines if line.startswith("wrong ")]
    assert wrong[0].startswith(f"wrong Spark: its master 127.0.0.1:{master} cannot be reached (")
    assert wrong[0].endswith("start it, or correct SPARK_LAB_MASTER")
    assert wrong[1].startswith("wrong PostgreSQL: examining it: the server cannot be reached")
    assert any(line.startswith("ok    disk") for line in lines)


def test_a_server_that_is_not_there_is_named(tmp_path: Path, database: Database) -> None:
    done = doctor(
        "--cluster",
        "served",
        SPARK_SERVED_MASTER=f"sc://127.0.0.1:{free_port()}",
        SPARK_SERVED_TOKEN="t",
        DB_DEV_URL=shown(database.url),
        MCQ_HOME=str(tmp_path / "home"),
    )
    assert done.returncode == 1, done
    assert "\nwrong Spark: its server 127.0.0.1:" in done.stdout
    assert "ok    Java: runs need none" in done.stdout


def on(database: Database, examine: Callable[[Connection], Iterator[Finding]]) -> list[Finding]:
    with database.engine().connect() as connection:
        return list(examine(connection))


def tables_of(database: Database) -> list[Finding]:
    return on(database, partial(examine_tables, database=database))


def rights_of(database: Database) -> list[Finding]:
    return on(database, partial(examine_rights, database=database))


def connections_of(database: Database, tasks: int) -> list[Finding]:
    return on(database, partial(examine_connections, tasks=tasks))


def wrong_texts(found: list[Finding]) -> list[str]:
    return [f"{one.topic}: {one.text}" for one in found if one.grade is Grade.WRONG]


def test_missing_indexes_and_tables_are_named(database: Database, empty_database: Database) -> None:
    assert wrong_texts(tables_of(database)) == []
    execute(
        database,
        "DROP INDEX answers_student_id_test_id_idx",
        "DROP TABLE analytics.test_funnel_fact",
    )
    indexes, facts = wrong_texts(tables_of(database))
    assert indexes.startswith("indexes: 1 missing: let the owner of the base tables run CREATE")
    assert facts.endswith("analytics.test_funnel_fact is missing: run mcq-analytics init-db")
    [base] = wrong_texts(tables_of(empty_database))
    assert base.startswith("base tables: the base table public.answers is missing")


@pytest.fixture
def limited(database: Database) -> Iterator[Database]:
    """The database as a role sees it that may do nothing in it."""
    execute(database, "CREATE ROLE limited LOGIN CONNECTION LIMIT 6")
    yield Database(database.url.set(username="limited"), "public", "analytics")
    execute(database, "DROP OWNED BY limited; DROP ROLE limited")


def test_rights_that_a_role_lacks_are_named(database: Database, limited: Database) -> None:
    name = database.url.database
    execute(database, f"REVOKE TEMPORARY ON DATABASE {name} FROM PUBLIC")
    [rights] = wrong_texts(rights_of(limited))
    assert rights.startswith("rights: the role limited may not create temporary tables, nor ")
    for lacking in (
        "create tables in the schema analytics",
        "read answers",
        "read submissions",
        "own etl_metadata, which belongs to postgres",
    ):
        assert f", nor {lacking}" in rights
    [found] = rights_of(database)
    assert (found.grade, "postgres is a superuser" in found.text) == (Grade.NOTE, True)


def test_the_rights_of_the_roles_script_are_enough(database: Database) -> None:
    run_roles(database)
    execute(database, "ALTER ROLE mcq_writer PASSWORD 'w'")
    writer = Database(database.url.set(username="mcq_writer"), "public", "analytics")
    [found] = rights_of(writer)
    assert found.grade is Grade.FINE, found


def test_connections_that_are_too_few_are_named(database: Database, limited: Database) -> None:
    assert wrong_texts(connections_of(limited, 2)) == []
    [few] = wrong_texts(connections_of(limited, 3))
    assert few.startswith("connections: a run takes up to 7, 3 of them for tasks of Spark; 6 are")
    with database.engine("another application").connect():
        name = database.url.database
        execute(database, f"ALTER DATABASE {name} CONNECTION LIMIT 5")
        [few] = wrong_texts(connections_of(database, 1))
    assert "4 are left by others: raise max_connections" in few


@pytest.mark.parametrize("way", ["driver", "slices", "ranges"])
def test_a_run_takes_no_more_connections_than_it_is_said_to(
    database: Database, spark: SparkSession, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    read_by(way, monkeypatch)
    add_sample(database, students=40, seed=9)
    sessions = text(
        "SELECT count(*) FILTER (WHERE application_name NOT LIKE '% task'), "
        "count(*) FILTER (WHERE application_name LIKE '% task') FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    seen: list[tuple[int, int]] = []
    enough = threading.Event()

    def look() -> None:
        with database.engine("onlooker").connect() as connection:
            while not enough.wait(0.002):
                own, of_tasks = connection.execute(sessions).one()
                seen.append((own, of_tasks))
                connection.rollback()

    looking = threading.Thread(target=look)
    looking.start()
    try:
        run_facts(database, spark, window("2024-01-01T00", "2024-01-03T00"))
    finally:
        enough.set()
        looking.join()
    assert 2 <= max(own for own, _ in seen) <= CONNECTIONS_OF_RUN
    assert 1 <= max(of_tasks for _, of_tasks in seen) <= TASKS


def test_masters_without_an_address_are_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HADOOP_CONF_DIR", raising=False)
    monkeypatch.delenv("YARN_CONF_DIR", raising=False)
    assert list(examine_master(SparkSettings())) == []
    [yarn] = examine_master(SparkSettings(cluster="hadoop", master="yarn"))
    assert (yarn.grade, yarn.text.partition(" ")[0]) == (Grade.WRONG, "HADOOP_CONF_DIR")
    ports = free_port(), free_port()
    two = ",".join(f"127.0.0.1:{port}" for port in ports)
    for master in (f"spark://{two}", f"k8s://https://127.0.0.1:{ports[0]}"):
        found = list(examine_master(SparkSettings(cluster="a-b", master=master)))
        assert {one.grade for one in found} == {Grade.WRONG}
        assert len(found) == master.count("127.0.0.1")
        assert found[0].text.endswith("correct SPARK_A_B_MASTER")


def test_clocks_and_disks_are_wrong_beyond_their_limits() -> None:
    assert of_clocks("one", "other", 4.9).grade is Grade.FINE
    assert of_clocks("one", "other", 7).text.startswith("that of one is 7 s ahead of that of other")
    assert of_clocks("one", "other", -7).text.startswith("that of other is 7 s ahead of that of o")
    assert of_disk("here", 3 * 10**9).grade is Grade.FINE
    assert of_disk("here", 10**9).text == "here has 1.0 GB free: make 2 GB free there"
