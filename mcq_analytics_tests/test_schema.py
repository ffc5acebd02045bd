"""Our schema, and what is found out about the base tables."""

from __future__ import annotations

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text

from mcq_analytics.errors import McqError
from mcq_analytics.model.facts import FACTS, IdType
from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.fact_tables import fact_tables
from mcq_analytics.postgres.inspection import (
    create_missing_base_tables,
    inspect_base_tables,
    missing_indexes,
)
from mcq_analytics.postgres.schema import key_types, migrate
from mcq_analytics_tests.conftest import MakeDatabase
from mcq_analytics_tests.facts_of import execute, scalar


@pytest.mark.parametrize("id_type", list(IdType), ids=lambda kind: kind.value)
def test_migrations_make_what_the_code_describes(
    make_database: MakeDatabase, id_type: IdType
) -> None:
    database = make_database(id_type)
    with database.engine().connect() as connection:
        types = key_types(inspect_base_tables(connection, "public"))
        context = MigrationContext.configure(
            connection,
            opts={
                "include_schemas": True,
                "compare_type": True,
                "version_table_schema": "analytics",
                "include_name": lambda name, kind, _: kind != "schema" or name == "analytics",
            },
        )
        assert compare_metadata(context, fact_tables("analytics", types).metadata) == []


def test_migrating_again_changes_nothing_and_leaves_base_tables_alone(database: Database) -> None:
    listed = (
        "SELECT string_agg(c.oid || c.relname || c.relfilenode, ',' ORDER BY c.oid) "
        "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE nspname IN ('public', 'analytics')"
    )
    before = scalar(database, listed)
    with database.engine().begin() as connection:
        assert create_missing_base_tables(connection, "public") == []
        migrate(connection, "analytics", key_types(inspect_base_tables(connection, "public")))
    assert scalar(database, listed) == before


def test_every_column_of_ours_carries_its_meaning(database: Database) -> None:
    without = (
        "SELECT string_agg(c.relname || '.' || a.attname, ', ') FROM pg_class c "
        "JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped "
        "WHERE c.relnamespace = 'analytics'::regnamespace AND c.relkind = 'r' "
        "AND c.relname <> 'alembic_version' AND col_description(c.oid, a.attnum) IS NULL"
    )
    assert scalar(database, without) is None
    assert "mean" in str(
        scalar(
            database,
            "SELECT lower(col_description('analytics.test_funnel_fact'::regclass, attnum)) FROM "
            "pg_attribute WHERE attrelid = 'analytics.test_funnel_fact'::regclass "
            "AND attname = 'avg_submit_time'",
        )
    )


def test_schemas_have_the_names_of_the_settings(empty_database: Database) -> None:
    with empty_database.engine().begin() as connection:
        create_missing_base_tables(connection, "Platform Data", IdType.UUID)
        base = inspect_base_tables(connection, "Platform Data")
        migrate(connection, 'facts "2024"', key_types(base))
    for fact in FACTS:
        assert scalar(empty_database, f'SELECT count(*) FROM "facts ""2024""".{fact.name}') == 0
    assert (
        scalar(
            empty_database,
            "SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'",
        )
        == 0
    )


def test_wide_and_unknown_types_are_told_apart(empty_database: Database) -> None:
    execute(
        empty_database,
        "CREATE TABLE questions (question_id varchar(40), correct_option text)",
        "CREATE TABLE sessions (session_id uuid, expiry_time date)",
    )
    with empty_database.engine().begin() as connection:
        assert create_missing_base_tables(connection, "public") == ["answers", "submissions"]
        with pytest.raises(McqError, match=r"sessions\.expiry_time has the type date"):
            inspect_base_tables(connection, "public")
    assert (
        scalar(
            empty_database,
            "SELECT data_type FROM information_schema.columns "
            "WHERE table_name = 'answers' AND column_name = 'question_id'",
        )
        == "character varying"
    )


def test_an_index_serves_when_it_begins_with_the_wanted_columns(empty_database: Database) -> None:
    execute(
        empty_database,
        "CREATE TABLE answers (answer_id int, student_id int, question_id int, test_id int, "
        "session_id int, submitted_option text, timestamp timestamptz)",
        "CREATE TABLE questions (question_id int PRIMARY KEY, correct_option text)",
        "CREATE TABLE sessions (session_id int UNIQUE, expiry_time timestamptz)",
        "CREATE TABLE submissions (student_id int, test_id int, submit_time timestamptz, "
        "completion_status text)",
        "CREATE INDEX ON answers (timestamp, test_id)",
        "CREATE INDEX ON answers (test_id)",
        "CREATE INDEX ON submissions (submit_time)",
    )
    with empty_database.engine().connect() as connection:
        base = inspect_base_tables(connection, "public")
        statements = missing_indexes(connection, base, "public")
    assert [statement.split(" ON ")[1] for statement in statements] == [
        "public.answers (student_id, test_id, question_id)",
        "public.answers (test_id, question_id)",
        "public.answers (session_id)",
        "public.submissions (test_id, student_id)",
    ]
    with empty_database.engine().connect() as connection:
        autocommit = connection.execution_options(isolation_level="AUTOCOMMIT")
        for statement in statements:
            autocommit.execute(text(statement))
        assert missing_indexes(connection, base, "public") == []
