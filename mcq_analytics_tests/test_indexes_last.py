"""A large first load creates the facts' indexes after their rows, if nobody reads them."""

from __future__ import annotations

import pytest
from pyspark.sql import SparkSession

from mcq_analytics.postgres.database import Database
from mcq_analytics_tests.facts_of import (
    add_sample,
    execute,
    run_facts,
    scalar,
    window,
    wrong_rows,
)
from mcq_analytics_tests.reading import read_by

WHOLE = window("2024-01-01T00", "2024-01-03T00")
INDEXES = """
    SELECT array_agg(pg_get_indexdef(indexrelid) ORDER BY pg_get_indexdef(indexrelid))
    FROM pg_index WHERE indrelid::regclass::text LIKE 'analytics.%'
"""
CONSTRAINTS = """
    SELECT array_agg(conrelid::regclass || ' ' || conname || ' ' || pg_get_constraintdef(oid)
        ORDER BY conrelid::regclass::text, conname)
    FROM pg_constraint WHERE conrelid::regclass::text LIKE 'analytics.%'
"""
KEY = "question_interaction_fact_pkey"
PLACES = """
    SELECT array_agg(indexrelid::bigint ORDER BY indexrelid) FROM pg_index
    WHERE indrelid = 'analytics.question_interaction_fact'::regclass
"""


@pytest.fixture
def large(database: Database, monkeypatch: pytest.MonkeyPatch) -> Database:
    """A database with a sample, of which every load counts as large."""
    read_by("ranges", monkeypatch)
    add_sample(database, students=20, seed=7, hours=24)
    return database


def test_indexes_are_created_after_the_rows_and_are_the_same(
    large: Database, spark: SparkSession
) -> None:
    indexes, constraints = scalar(large, INDEXES), scalar(large, CONSTRAINTS)
    places = scalar(large, PLACES)
    run_facts(large, spark, WHOLE)
    assert scalar(large, INDEXES) == indexes
    assert scalar(large, CONSTRAINTS) == constraints
    created = scalar(large, PLACES)
    assert isinstance(created, list)
    assert isinstance(places, list)
    assert not set(created) & set(places)
    assert wrong_rows(large) == []
    # Rows are there now: the indexes stay.
    run_facts(large, spark, WHOLE)
    assert scalar(large, PLACES) == created


@pytest.mark.parametrize(
    "change",
    [
        "COMMENT ON INDEX analytics.question_interaction_fact_test_id_idx IS 'ours'",
        "ALTER INDEX analytics.question_interaction_fact_test_id_idx SET (fillfactor = 70)",
        f"COMMENT ON CONSTRAINT {KEY} ON analytics.question_interaction_fact IS 'ours'",
        f"ALTER TABLE analytics.question_interaction_fact RENAME CONSTRAINT {KEY} TO ours",
        f"ALTER TABLE analytics.question_interaction_fact REPLICA IDENTITY USING INDEX {KEY}",
        (
            "CREATE VIEW ours AS SELECT final_answer_option "
            "FROM analytics.question_interaction_fact GROUP BY student_id, test_id, question_id"
        ),
    ],
)
def test_indexes_that_their_owner_has_altered_or_uses_stay(
    large: Database, spark: SparkSession, change: str
) -> None:
    execute(large, change)
    places = scalar(large, PLACES)
    run_facts(large, spark, WHOLE)
    assert scalar(large, PLACES) == places
    assert wrong_rows(large) == []


def test_a_load_does_not_wait_for_readers(large: Database, spark: SparkSession) -> None:
    places = scalar(large, PLACES)
    with large.engine().connect() as reader:
        reader.exec_driver_sql("SELECT count(*) FROM analytics.question_interaction_fact")
        run_facts(large, spark, WHOLE)
    assert scalar(large, PLACES) == places
    assert wrong_rows(large) == []


def test_a_load_that_fails_leaves_the_indexes(large: Database, spark: SparkSession) -> None:
    indexes, places = scalar(large, INDEXES), scalar(large, PLACES)
    execute(
        large,
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$",
        "CREATE TRIGGER fail BEFORE INSERT ON analytics.test_funnel_fact "
        "FOR EACH ROW EXECUTE FUNCTION fail()",
    )
    with pytest.raises(Exception, match="no"):
        run_facts(large, spark, WHOLE)
    assert scalar(large, INDEXES) == indexes
    assert scalar(large, PLACES) == places
    execute(large, "DROP TRIGGER fail ON analytics.test_funnel_fact")
    run_facts(large, spark, WHOLE)
    assert wrong_rows(large) == []
