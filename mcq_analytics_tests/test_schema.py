"""Our schema, its constraints and migrations; and the inspection of base tables."""

from __future__ import annotations

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from mcq_analytics.errors import McqError
from mcq_analytics.model.facts import FACTS, Fact, IdType
from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.errors import explain
from mcq_analytics.postgres.fact_tables import fact_tables
from mcq_analytics.postgres.inspection import (
    create_missing_base_tables,
    inspect_base_tables,
    missing_indexes,
)
from mcq_analytics.postgres.schema import key_types, migrate, upgrade
from mcq_analytics_tests.conftest import MakeDatabase
from mcq_analytics_tests.facts_of import execute, scalar


@pytest.mark.parametrize("id_type", list(IdType), ids=lambda kind: kind.value)
def test_migrations_create_the_tables_that_the_code_describes(
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


def make_facts(database: Database) -> None:
    with database.engine().begin() as connection:
        migrate(connection, "analytics", key_types(inspect_base_tables(connection, "public")))


def test_migrating_again_changes_nothing_and_leaves_base_tables_alone(database: Database) -> None:
    listed = (
        "SELECT string_agg(c.oid || c.relname || c.relfilenode, ',' ORDER BY c.oid) "
        "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE nspname IN ('public', 'analytics')"
    )
    before = scalar(database, listed)
    with database.engine().begin() as connection:
        assert create_missing_base_tables(connection, "public") == []
    make_facts(database)
    assert scalar(database, listed) == before


BROKEN_ROWS = [
    ("question_interaction_fact", "answer_count = 0, revisited = false"),
    ("question_interaction_fact", "revisited = true"),
    ("question_interaction_fact", "final_answer_option = NULL"),
    ("question_interaction_fact", "last_answer_time = first_answer_time - interval '1 s'"),
    ("question_interaction_fact", "time_spent = -1"),
    ("question_interaction_fact", "time_spent = 'NaN'"),
    ("test_summary_fact", "questions_attempted = 0, correct_answers = 0"),
    ("test_summary_fact", "total_questions = 1"),
    ("test_summary_fact", "correct_answers = 3"),
    ("test_summary_fact", "correct_answers = -1"),
    ("test_summary_fact", "accuracy_percent = 100.5"),
    ("test_summary_fact", "accuracy_percent = 'NaN'"),
    ("test_summary_fact", "time_spent = 'infinity'"),
    ("test_funnel_fact", "total_submissions = 5"),
    (
        "test_funnel_fact",
        ("total_submissions = 0, completed_submissions = 0, incomplete_submissions = 0"),
    ),
    ("test_funnel_fact", "completed_submissions = 4, incomplete_submissions = -1"),
    ("test_funnel_fact", "completed_submissions = -1, incomplete_submissions = 4"),
    ("test_funnel_fact", "completion_rate = -0.5"),
    ("test_funnel_fact", "avg_submit_time = -1"),
]
RIGHT_ROWS = (
    (
        "INSERT INTO analytics.question_interaction_fact VALUES (1, 2, 3, '2024-01-01Z', "
        "'2024-01-01Z', 1, 'A', true, false, 0), (1, 2, 4, '2024-01-01Z', '2024-01-02Z', 2, NULL, "
        "false, true, 86400), (1, 2, 5, '2024-01-01Z', '2024-01-01Z', 1, NULL, NULL, false, 0)"
    ),
    "INSERT INTO analytics.test_summary_fact VALUES (1, 2, 5, 2, 2, 100, 0)",
    (
        "INSERT INTO analytics.test_funnel_fact VALUES (2, 3, 2, 1, 66.7, 5, now(), 1, 5000000), "
        "(3, 1, 0, 1, 0, NULL, now(), 0, 0)"
    ),
)


@pytest.mark.parametrize(("fact", "change"), BROKEN_ROWS)
def test_a_row_that_breaks_a_constraint_is_refused(
    database: Database, fact: str, change: str
) -> None:
    execute(database, *RIGHT_ROWS)
    first = "question_id = 3" if fact == "question_interaction_fact" else "test_id = 2"
    with pytest.raises(IntegrityError, match=f'violates check constraint "{fact}_') as failure:
        execute(database, f"UPDATE analytics.{fact} SET {change} WHERE {first}")
    assert "a computed row breaks a rule of its fact" in str(explain(failure.value, "merging"))


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.name)
def test_a_second_row_with_the_same_key_is_refused(database: Database, fact: Fact) -> None:
    execute(database, *RIGHT_ROWS)
    with pytest.raises(IntegrityError, match="duplicate key"):
        execute(
            database,
            f"INSERT INTO analytics.{fact.name} SELECT * FROM analytics.{fact.name} LIMIT 1",
        )


CONSTRAINTS = (
    "SELECT array_agg(conname || ' ' || replace(pg_get_constraintdef(oid), ' NOT VALID', '') "
    "ORDER BY conname) FROM pg_constraint "
    "WHERE contype = 'c' AND connamespace = '{}'::regnamespace"
)


def test_migrated_tables_have_the_constraints_that_the_code_describes(database: Database) -> None:
    with database.engine().begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA described")
        types = key_types(inspect_base_tables(connection, "public"))
        fact_tables("described", types).metadata.create_all(connection)
    migrated = scalar(database, CONSTRAINTS.format("analytics"))
    assert migrated == scalar(database, CONSTRAINTS.format("described"))
    assert scalar(database, "SELECT bool_and(convalidated) FROM pg_constraint") is True


def test_a_column_without_a_migration_is_named(database: Database) -> None:
    execute(database, "ALTER TABLE analytics.test_funnel_fact DROP avg_submit_time")
    message = (
        "^no migration creates test_funnel_fact.avg_submit_time: add one to "
        "postgres/migrations/versions$"
    )
    with pytest.raises(McqError, match=message):
        make_facts(database)


def make_old_facts(database: Database, version: str) -> None:
    """Replace the fact schema with an empty one of an older version."""
    with database.engine().begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA analytics CASCADE")
        types = key_types(inspect_base_tables(connection, "public"))
        upgrade(connection, "analytics", types, version)


FUNNEL_ROW = (
    "INSERT INTO analytics.test_funnel_fact (test_id, total_submissions, completed_submissions, "
    "incomplete_submissions, completion_rate) VALUES ({}, 1, 1, 0, {})"
)
NEW_FUNNEL_ROW = (
    "INSERT INTO analytics.test_funnel_fact VALUES (9, 1, 1, 0, 101, NULL, now(), 0, 0)"
)


def test_migrating_keeps_old_wrong_rows_and_refuses_new_ones(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    make_old_facts(database, "0003")
    execute(
        database,
        FUNNEL_ROW.format(2, 101),
        FUNNEL_ROW.format(3, 100),
        "INSERT INTO analytics.test_summary_fact VALUES (1, 2, 5, 2, 2, 100, 0)",
        "INSERT INTO analytics.question_interaction_fact VALUES (1, 2, 4, '2024-01-01Z', "
        "'2024-01-02Z', 2, NULL, false, true, 86400)",
    )
    make_facts(database)
    [said] = caplog.messages
    assert said.startswith("analytics.test_funnel_fact has old rows that break ")
    assert "completion_rate <= " in said
    assert "init-db again" in said
    assert scalar(database, "SELECT count(*) FROM analytics.test_funnel_fact") == 2
    with pytest.raises(IntegrityError, match="violates check constraint"):
        execute(database, NEW_FUNNEL_ROW)
    unchecked = "SELECT array_agg(conname) FROM pg_constraint WHERE NOT convalidated"
    assert scalar(database, unchecked) == ["test_funnel_fact_completion_rate_check"]
    caplog.clear()
    # As a run over its hours would correct the row.
    execute(database, "UPDATE analytics.test_funnel_fact SET completion_rate = 50")
    make_facts(database)
    assert scalar(database, unchecked) is None
    assert caplog.messages == []


def test_migrating_leaves_hours_that_a_removed_check_found_wrong_to_the_remaining_check(
    database: Database,
) -> None:
    make_old_facts(database, "0003")
    verdicts = [
        ("keys_are_unique", 0),
        ("values_are_in_range", 0),
        ("values_are_in_range", 1),
        ("rows_equal_a_recompute", 0),
    ]
    execute(
        database,
        *(
            "INSERT INTO analytics.wrong_hour VALUES ('test_funnel_fact', "
            f"'{check}', timestamptz '2024-01-01Z' + interval '{hour} h', 'r', now(), 'wrong')"
            for check, hour in verdicts
        ),
    )
    make_facts(database)
    assert scalar(
        database,
        "SELECT array_agg(check_name || extract(hour FROM hour) ORDER BY hour) "
        "FROM analytics.wrong_hour",
    ) == ["rows_equal_a_recompute0", "rows_equal_a_recompute1"]


def test_every_column_of_our_tables_has_a_comment(database: Database) -> None:
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


def test_schemas_may_have_any_name(empty_database: Database) -> None:
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


def test_unsupported_types_are_refused_and_wide_ones_kept(empty_database: Database) -> None:
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


def test_an_index_will_do_if_it_begins_with_the_wanted_columns(empty_database: Database) -> None:
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
        "public.answers (student_id, test_id)",
        "public.submissions (student_id, test_id)",
    ]
    with empty_database.engine().connect() as connection:
        autocommit = connection.execution_options(isolation_level="AUTOCOMMIT")
        for statement in statements:
            autocommit.execute(text(statement))
        assert missing_indexes(connection, base, "public") == []
