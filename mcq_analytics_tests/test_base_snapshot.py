"""Base tables are read in a single state, whatever their owner does meanwhile."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from time import sleep

import pytest
from pyspark.sql import SparkSession
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, OperationalError

from mcq_analytics.compute.attempt import Attempt
from mcq_analytics.errors import BaseTablesChangedError, McqError
from mcq_analytics.model.base_tables import BASE_COLUMNS
from mcq_analytics.postgres.base_snapshot import base_snapshot, snapshot_connection
from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.errors import is_transient
from mcq_analytics.postgres.inspection import inspect_base_tables
from mcq_analytics.transforms.student_tests import student_tests
from mcq_analytics_tests.conftest import MakeDatabase
from mcq_analytics_tests.depth import in_turns
from mcq_analytics_tests.facts_of import TABLES, execute, scalar, window, wrong_rows
from mcq_analytics_tests.reading import WAYS, read_by

NINE = window("2024-01-01T09", "2024-01-01T10")

# Statements that take effect for older snapshots too, so that only a lock keeps them out.
REPLACING = {
    "truncated": "TRUNCATE {table}",
    "rewritten": "ALTER TABLE {table} ALTER COLUMN {column} TYPE varchar",
    "dropped": "DROP TABLE {table} CASCADE",
    "clustered": "VACUUM (FULL) {table}",
}


def add_rows(database: Database) -> None:
    """Add 2,000 answers to 40 questions, one of them late, keys, and submissions."""
    execute(
        database,
        "INSERT INTO questions SELECT q, 'A' FROM generate_series(1, 40) q",
        "INSERT INTO sessions VALUES (1, '2024-01-01 09:30Z'), (2, '2024-01-01 09:30Z')",
        "INSERT INTO answers SELECT n, n % 50, 1 + n % 40, 5, 1 + n % 2, 'A', "
        "timestamptz '2024-01-01 09:00Z' + n * interval '100 ms' FROM generate_series(1, 1999) n",
        "INSERT INTO answers VALUES (2000, 7, 41, 5, 1, 'A', '2024-01-01 09:40Z')",
        "INSERT INTO submissions SELECT n, 5, '2024-01-01 09:20Z', 'completed' "
        "FROM generate_series(1, 50) n",
        *(f"CREATE TABLE {name}_copy AS TABLE {name}" for name in BASE_COLUMNS),
    )


def blocked(database: Database, statement: str) -> bool:
    """Return whether a statement must wait for a lock."""
    engine = database.engine()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SET lock_timeout = '100ms'"))
        try:
            connection.execute(text(statement))
        except OperationalError as error:
            if getattr(error.orig, "pgcode", None) == "55P03":
                return True
            raise
    return False


@pytest.mark.parametrize(("table", "way"), in_turns(BASE_COLUMNS, WAYS))
def test_replacing_a_table_during_a_run_leaves_no_wrong_fact(
    database: Database,
    spark: SparkSession,
    monkeypatch: pytest.MonkeyPatch,
    table: str,
    way: str,
) -> None:
    read_by(way, monkeypatch)
    for module in ("compute.attempt", "postgres.base_snapshot"):
        monkeypatch.setattr(f"mcq_analytics.{module}.READER_LOCK_TIMEOUT", "300ms")
    monkeypatch.setattr("mcq_analytics.postgres.retries.FIRST_WAIT_SECONDS", 0.2)
    add_rows(database)
    replace = f"TRUNCATE {table}; INSERT INTO {table} TABLE {table}_copy"
    with Attempt(database, NINE, "run") as attempt, ThreadPoolExecutor(1) as others:
        replaced: Future[None] = others.submit(execute, database, replace)
        sleep(0.2)
        attempt.commit(student_tests(**attempt.inputs(spark)), student_tests)
    replaced.result()
    assert wrong_rows(database) == []
    counts = {name: scalar(database, f"SELECT count(*) FROM analytics.{name}") for name in TABLES}
    assert counts == {
        "question_interaction_fact": 200,
        "test_summary_fact": 50,
        "test_funnel_fact": 1,
        "student_test_submissions": 50,
        "student_test_hour": 51,
    }


@pytest.mark.parametrize("how", list(REPLACING))
@pytest.mark.parametrize("table", list(BASE_COLUMNS))
def test_a_table_cannot_be_replaced_while_it_is_read(
    database: Database, table: str, how: str
) -> None:
    statement = REPLACING[how].format(table=table, column=next(iter(BASE_COLUMNS[table])))
    with base_snapshot(database.engine(), "public"):
        assert blocked(database, statement)
    assert not blocked(database, statement)


def test_the_owner_can_do_all_other_work_meanwhile(database: Database) -> None:
    add_rows(database)
    with snapshot_connection(database.engine(), "public") as (connection, _):
        for table in BASE_COLUMNS:
            assert not blocked(database, f"INSERT INTO {table}_copy TABLE {table}")
            assert not blocked(database, f"DELETE FROM {table}")
            assert not blocked(database, f"VACUUM {table}")
            column = next(iter(BASE_COLUMNS[table]))
            assert not blocked(database, f"CREATE INDEX ON {table} ({column})")
        assert connection.execute(text("SELECT count(*) FROM answers")).scalar() == 2000
    assert scalar(database, "SELECT count(*) FROM answers") == 0


def test_tables_under_views_cannot_be_replaced_even_if_only_the_view_owner_can_read_them(
    database: Database,
) -> None:
    execute(
        database,
        "CREATE SCHEMA logs",
        "ALTER TABLE answers SET SCHEMA logs",
        "CREATE VIEW logs.all_answers AS TABLE logs.answers",
        "CREATE VIEW answers AS TABLE logs.all_answers",
        "ALTER TABLE sessions SET SCHEMA logs",
        "CREATE MATERIALIZED VIEW sessions AS TABLE logs.sessions",
        "CREATE MATERIALIZED VIEW logs.keys AS TABLE questions",
        "ALTER TABLE questions SET SCHEMA logs",
        "CREATE VIEW questions AS TABLE logs.keys",
        "DROP ROLE IF EXISTS only_views",
        "CREATE ROLE only_views",
        "GRANT SELECT ON answers, questions, sessions, submissions TO only_views",
    )
    url = database.url.update_query_dict({"options": "-c role=only_views"})
    try:
        with base_snapshot(Database(url, "public", "analytics").engine(), "public"):
            assert blocked(database, "TRUNCATE logs.answers")
            assert blocked(database, "REFRESH MATERIALIZED VIEW sessions")
            assert blocked(database, "REFRESH MATERIALIZED VIEW logs.keys")
            assert not blocked(database, "TRUNCATE logs.sessions")
        assert not blocked(database, "TRUNCATE logs.answers")
        assert not blocked(database, "REFRESH MATERIALIZED VIEW sessions")
    finally:
        execute(database, "DROP OWNED BY only_views", "DROP ROLE only_views")


def test_attaching_a_partition_meanwhile_is_noticed_as_a_transient_error(
    database: Database,
) -> None:
    execute(
        database,
        "DROP TABLE submissions",
        "CREATE TABLE submissions (student_id bigint, test_id bigint, submit_time timestamptz, "
        "completion_status text) PARTITION BY LIST (test_id)",
        "CREATE TABLE of_one PARTITION OF submissions FOR VALUES IN (1)",
        "CREATE TABLE of_two (LIKE submissions)",
    )
    with base_snapshot(database.engine(), "public") as snapshot:
        assert blocked(database, "TRUNCATE of_one")
        snapshot.require_unchanged()
        execute(database, "ALTER TABLE submissions ATTACH PARTITION of_two FOR VALUES IN (2)")
        with pytest.raises(BaseTablesChangedError) as raised:
            snapshot.require_unchanged()
    assert is_transient(raised.value)


def test_a_lost_snapshot_is_noticed_before_anything_is_stored(database: Database) -> None:
    with base_snapshot(database.engine("holder"), "public") as snapshot:
        execute(
            database,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'holder'",
        )
        with pytest.raises(DBAPIError) as raised:
            snapshot.require_unchanged()
    assert is_transient(raised.value)


@pytest.mark.parametrize("through_a_view", [False, True])
def test_a_foreign_table_is_refused_by_name(
    make_database: MakeDatabase, through_a_view: bool
) -> None:
    database = make_database()
    name = "elsewhere" if through_a_view else "sessions"
    execute(
        database,
        "DROP TABLE sessions",
        "CREATE FOREIGN DATA WRAPPER somewhere",
        "CREATE SERVER there FOREIGN DATA WRAPPER somewhere",
        f"CREATE FOREIGN TABLE {name} (session_id bigint, expiry_time timestamptz) SERVER there",
        *(["CREATE VIEW sessions AS TABLE elsewhere"] if through_a_view else []),
    )
    said = f"public.sessions reads the foreign table {name}"
    with database.engine().connect() as connection, pytest.raises(McqError, match=said):
        inspect_base_tables(connection, "public")
    with pytest.raises(McqError, match=said), base_snapshot(database.engine(), "public"):
        pass


def test_an_owner_who_locks_tables_in_another_order_never_suffers_the_deadlock(
    database: Database,
) -> None:
    add_rows(database)
    held, held_again = threading.Event(), threading.Event()

    def replace_two() -> None:
        with database.engine().begin() as connection:
            connection.execute(text("TRUNCATE sessions"))
            held.set()
            sleep(0.3)
            connection.execute(text("TRUNCATE answers"))
            held_again.set()

    with ThreadPoolExecutor(1) as others:
        replaced = others.submit(replace_two)
        assert held.wait(10)
        with snapshot_connection(database.engine(), "public") as (connection, _):
            assert held_again.is_set()
            assert connection.execute(text("SELECT count(*) FROM answers")).scalar() == 0
        replaced.result()
