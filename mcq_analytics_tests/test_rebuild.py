"""Facts of an older version: kept by the migration, completed from base tables, then as any."""

from __future__ import annotations

from datetime import datetime

import pytest
from pyspark.sql import SparkSession

from mcq_analytics.compute.fingerprints import stale_hours
from mcq_analytics.compute.rebuild import rebuild_if_needed
from mcq_analytics.model.facts import FACTS
from mcq_analytics.model.windows import ranges
from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.inspection import inspect_base_tables
from mcq_analytics.postgres.schema import key_types, migrate
from mcq_analytics_tests.disagreements import disagreements_now
from mcq_analytics_tests.facts_of import (
    add_sample,
    contents,
    execute,
    run_facts,
    scalar,
    window,
    wrong_rows,
)
from mcq_analytics_tests.old_facts import BEFORE, store_old_facts

FIRST_DAY = window("2024-01-01T00", "2024-01-02T00")
SECOND_DAY = window("2024-01-02T00", "2024-01-03T00")
BOTH_DAYS = window("2024-01-01T00", "2024-01-03T00")
OF_SECOND_DAY = {"answers": '"timestamp"', "submissions": "submit_time"}
CHANGED_ROWS = " + ".join(
    f"(SELECT count(*) FROM analytics.{fact.name} WHERE updated_at <> '{BEFORE}')" for fact in FACTS
)


@pytest.fixture
def old(database: Database) -> Database:
    """A database with old facts of a first day; the second day's rows are set aside."""
    add_sample(database, students=30, seed=11)
    execute(
        database,
        "UPDATE sessions SET expiry_time = NULL",
        *(
            f"CREATE TABLE {table}_later AS SELECT * FROM {table} WHERE {time} >= '2024-01-02Z'"
            for table, time in OF_SECOND_DAY.items()
        ),
        *(
            f"DELETE FROM {table} WHERE {time} >= '2024-01-02Z'"
            for table, time in OF_SECOND_DAY.items()
        ),
    )
    store_old_facts(database, FIRST_DAY)
    return database


def init(database: Database) -> bool:
    """Migrate and complete the facts, as `init-db` does; return whether that was needed."""
    with database.engine().begin() as connection:
        base = inspect_base_tables(connection, "public")
        migrate(connection, "analytics", key_types(base))
        return rebuild_if_needed(connection, base, "analytics")


def stale(database: Database) -> set[datetime]:
    with database.engine().connect() as connection:
        base = inspect_base_tables(connection, "public")
        return set(stale_hours(connection, base, "analytics", BOTH_DAYS))


def test_old_facts_are_exact_after_the_migration_and_no_hour_has_to_run_again(
    old: Database, spark: SparkSession
) -> None:
    assert init(old) is True
    assert scalar(old, "SELECT count(*) > 300 FROM analytics.question_interaction_fact") is True
    assert wrong_rows(old) == []
    assert disagreements_now(old) == []
    # No value that a reader syncs has changed, and nothing is left to compute.
    assert scalar(old, f"SELECT {CHANGED_ROWS}") == 0
    assert stale(old) == set()
    once = contents(old)
    assert init(old) is False
    run_facts(old, spark, FIRST_DAY)
    assert contents(old) == once


def test_runs_after_the_migration_make_changed_and_new_hours_exact(
    old: Database, spark: SparkSession
) -> None:
    init(old)
    for table in OF_SECOND_DAY:
        execute(old, f"INSERT INTO {table} TABLE {table}_later")
    execute(old, *CHANGES)
    changed = stale(old)
    assert changed
    for over in (SECOND_DAY, *ranges(hour for hour in FIRST_DAY.starts() if hour in changed)):
        run_facts(old, spark, over)
        assert disagreements_now(old) == []
    assert wrong_rows(old) == []


CHANGES = (
    "UPDATE answers SET submitted_option = 'A' WHERE answer_id % 5 = 0",
    "DELETE FROM answers WHERE student_id IN (SELECT min(student_id) FROM answers)",
    "UPDATE submissions SET completion_status = 'timeout' WHERE student_id % 3 = 0",
    "DELETE FROM submissions WHERE student_id IN (SELECT max(student_id) FROM submissions)",
)


def test_what_changes_between_the_last_old_run_and_the_migration_is_found_by_the_sensor(
    old: Database, spark: SparkSession
) -> None:
    execute(old, *CHANGES)
    init(old)
    assert disagreements_now(old) == []
    for over in ranges(hour for hour in FIRST_DAY.starts() if hour in stale(old)):
        run_facts(old, spark, over)
    assert wrong_rows(old) == []


def test_submissions_of_hours_that_never_ran_are_left_to_their_runs(
    old: Database, spark: SparkSession
) -> None:
    for table in OF_SECOND_DAY:
        execute(old, f"INSERT INTO {table} TABLE {table}_later")
    init(old)
    assert disagreements_now(old) == []
    later = (
        "SELECT count(*) FROM analytics.student_test_submissions s WHERE NOT EXISTS ("
        "SELECT FROM analytics.student_test_hour h WHERE h.hour < '2024-01-02Z' "
        "AND (h.student_id, h.test_id) = (s.student_id, s.test_id))"
    )
    assert scalar(old, later) == 0
    run_facts(old, spark, SECOND_DAY)
    assert wrong_rows(old) == []
    assert disagreements_now(old) == []


def test_hours_of_which_only_some_facts_were_computed_are_stale(old: Database) -> None:
    execute(
        old,
        "DELETE FROM analytics.hour_fingerprint WHERE hour = '2024-01-01 10:00Z' "
        "AND pipeline_name = 'test_funnel_fact'",
        "UPDATE analytics.hour_fingerprint SET answers = '1:1' WHERE hour = '2024-01-01 11:00Z' "
        "AND pipeline_name = 'test_summary_fact'",
    )
    init(old)
    known = "SELECT count(*) FROM analytics.hour_fingerprint WHERE hour = '2024-01-01 {}:00Z'"
    assert scalar(old, known.format(10)) == 0
    assert scalar(old, known.format(11)) == 1
    assert {f"{hour:%H}" for hour in stale(old)} == {"11"}


def test_a_new_fact_schema_needs_no_rebuild(database: Database) -> None:
    add_sample(database, students=5, seed=11)
    assert init(database) is False
    assert scalar(database, "SELECT count(*) FROM analytics.student_test_submissions") == 0
