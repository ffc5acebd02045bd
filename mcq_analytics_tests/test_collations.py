"""Texts compare by their bytes, whatever the collations."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pyspark.sql import SparkSession
from sqlalchemy import text

from mcq_analytics.errors import McqError
from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.inspection import inspect_base_tables
from mcq_analytics_tests.conftest import drop_database
from mcq_analytics_tests.facts_of import execute, run_facts, scalar
from mcq_analytics_tests.loose_tables import NINE, create_base_tables, require_settled
from mcq_analytics_tests.servers import OwnServer


@pytest.fixture
def icu_database(own_server: OwnServer) -> Iterator[Database]:
    """An empty database with a default collation other than the order of bytes."""
    server = own_server.url()
    engine = Database(server, "public", "analytics").engine()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        collations = "SELECT count(*) FROM pg_collation WHERE collname = 'en-x-icu'"
        if not connection.execute(text(collations)).scalar():
            pytest.skip("this server was built without ICU")
        version = connection.execute(text("SHOW server_version_num")).scalar_one()
        own = "LOCALE_PROVIDER icu ICU_LOCALE 'en'" if int(version) >= 150000 else ""
        connection.execute(text(f"CREATE DATABASE by_language TEMPLATE template0 {own}"))
    url = server.set(database="by_language")
    yield Database(url, "public", "analytics")
    drop_database(url)


def test_texts_compare_by_their_bytes_whatever_their_collations(
    icu_database: Database, spark: SparkSession
) -> None:
    database = icu_database
    create_base_tables(database)
    for column in ("student_id", "test_id"):
        # PostgreSQL cannot compare columns of two collations unless the query chooses one.
        execute(
            database,
            f'ALTER TABLE answers ALTER COLUMN {column} TYPE text COLLATE "de-x-icu"',
            f'ALTER TABLE submissions ALTER COLUMN {column} TYPE text COLLATE "sv-x-icu"',
        )
    execute(
        database,
        'ALTER TABLE answers ALTER COLUMN session_id TYPE text COLLATE "de-x-icu"',
        'ALTER TABLE sessions ALTER COLUMN session_id TYPE text COLLATE "sv-x-icu"',
        'ALTER TABLE answers ALTER COLUMN question_id TYPE text COLLATE "de-x-icu"',
        'ALTER TABLE questions ALTER COLUMN question_id TYPE text COLLATE "sv-x-icu"',
        'ALTER TABLE answers ALTER COLUMN submitted_option TYPE text COLLATE "de-x-icu"',
        'ALTER TABLE questions ALTER COLUMN correct_option TYPE text COLLATE "sv-x-icu"',
        "INSERT INTO questions VALUES ('q', 'B'), ('q', 'a')",
        "INSERT INTO sessions VALUES ('x', '2024-01-01 09:30Z')",
        # By bytes `a` comes after `B`, among options and among ids.
        "INSERT INTO answers VALUES (NULL, 'bob', 'q', 't', 'x', 'a', '2024-01-01 09:10Z'), "
        "(NULL, 'bob', 'q', 't', 'x', 'B', '2024-01-01 09:10Z'), "
        "('a', 'Bob', 'q', 't', 'x', 'B', '2024-01-01 09:10Z'), "
        "('B', 'Bob', 'q', 't', 'x', 'a', '2024-01-01 09:10Z'), "
        "('1', 'bob', 'late', 't', 'x', 'B', '2024-01-01 09:31Z')",
        "INSERT INTO submissions VALUES ('bob', 't', '2024-01-01 09:20Z', 'COMPLETED'), "
        "('Bob', 't', '2024-01-01 09:21Z', NULL)",
    )
    for _ in range(2):
        run_facts(database, spark, NINE)
        finals = (
            "SELECT string_agg(concat_ws(' ', student_id, final_answer_option, is_correct), ', ' "
            'ORDER BY student_id COLLATE "C") FROM analytics.question_interaction_fact'
        )
        assert scalar(database, finals) == "Bob B f, bob a t"
        require_settled(database)


@pytest.mark.parametrize(
    ("table", "column"),
    [("answers", "student_id"), ("questions", "correct_option"), ("submissions", "test_id")],
)
def test_a_collation_that_makes_different_texts_equal_is_refused_by_name(
    icu_database: Database, table: str, column: str
) -> None:
    database = icu_database
    create_base_tables(database)
    execute(
        database,
        "CREATE COLLATION loose (provider = icu, locale = 'und-u-ks-level2', "
        "deterministic = false)",
        f"ALTER TABLE {table} ALTER COLUMN {column} TYPE text COLLATE loose",
    )
    said = f"public.{table}.{column} is of the collation loose.*through a view"
    with database.engine().connect() as connection, pytest.raises(McqError, match=said):
        inspect_base_tables(connection, "public")
    execute(
        database,
        f"ALTER TABLE {table} RENAME TO {table}_loose",
        f"CREATE VIEW {table} AS SELECT * FROM {table}_loose",
    )
    with database.engine().connect() as connection, pytest.raises(McqError, match=said):
        inspect_base_tables(connection, "public")
