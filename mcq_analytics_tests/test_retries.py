"""Transient errors: another attempt is made, in a new snapshot; other errors are final."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession
from sqlalchemy import text

from mcq_analytics.compute.attempt import Attempt
from mcq_analytics.compute.report import AttemptReport
from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.errors import explain
from mcq_analytics.postgres.retries import TRIALS
from mcq_analytics.transforms.student_tests import student_tests
from mcq_analytics_tests.attempts_at_nine import NINE, RUNNING, STAGING, add_nine, statuses
from mcq_analytics_tests.facts_of import contents, execute, run_facts, scalar, wrong_rows
from mcq_analytics_tests.reading import read_by, some_ways
from mcq_analytics_tests.servers import wait_until


@pytest.fixture
def answered(database: Database) -> Database:
    """A database with an answer and a submission at nine."""
    add_nine(database)
    return database


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short waits between retries, and for locked tables."""
    monkeypatch.setattr("mcq_analytics.postgres.retries.FIRST_WAIT_SECONDS", 0.05)
    monkeypatch.setattr("mcq_analytics.postgres.database.TABLE_LOCK_SECONDS", 1)


def facts_disturbed_by(database: Database, spark: SparkSession, statement: str) -> AttemptReport:
    """Compute the facts of nine o'clock; a task executes `statement` while Spark computes."""
    url = database.conninfo("disturber")

    def disturb(batches: Iterator[Any]) -> Iterator[Any]:
        from adbc_driver_postgresql import dbapi  # noqa: PLC0415

        with dbapi.connect(url, autocommit=True) as connection, connection.cursor() as cursor:
            cursor.execute(statement)
            cursor.fetchall()
        yield from batches

    def disturbed(**inputs: DataFrame) -> DataFrame:
        frame = student_tests(**inputs).coalesce(1)
        return frame.mapInArrow(disturb, frame.schema)

    with Attempt(database, NINE, "cut-run") as attempt:
        return attempt.commit(disturbed(**attempt.inputs(spark)), disturbed)


END_SESSIONS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
    "AND application_name LIKE 'mcq_analytics cut-run%'"
)


@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize("way", some_ways(1))
def test_an_attempt_whose_sessions_were_ended_is_retried_in_a_new_snapshot(
    answered: Database,
    spark: SparkSession,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    way: str,
) -> None:
    read_by(way, monkeypatch)
    execute(answered, "CREATE SEQUENCE times")
    report = facts_disturbed_by(
        answered,
        spark,
        # A row that the first snapshot cannot see shows which of the two was stored.
        "WITH late AS (INSERT INTO submissions SELECT 9, 5, '2024-01-01 09:40Z', 'timeout' "
        "WHERE nextval('times') = 1 RETURNING 1) "
        f"{END_SESSIONS} AND EXISTS (SELECT 1 FROM late)",
    )
    assert "retrying in" in caplog.text
    assert statuses(answered) == ["failed", "success"]
    assert report.rows_read == 3
    assert {name: counts.inserted for name, counts in report.counts.items()} == {
        "question_interaction_fact": 1,
        "test_summary_fact": 1,
        "test_funnel_fact": 1,
    }
    assert scalar(answered, "SELECT total_submissions FROM analytics.test_funnel_fact") == 2
    assert scalar(answered, STAGING) == scalar(answered, RUNNING) == 0


@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize("way", some_ways())
def test_an_attempt_whose_sessions_are_ended_again_and_again_commits_nothing(
    answered: Database, spark: SparkSession, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    read_by(way, monkeypatch)
    empty = contents(answered)
    with pytest.raises(Exception, match=r"snapshot|terminating|closed|Broken pipe") as failure:
        facts_disturbed_by(answered, spark, END_SESSIONS)
    assert "the connection to the server was lost" in str(explain(failure.value, "the run"))
    assert contents(answered) == empty
    assert statuses(answered) == ["failed"] * TRIALS
    run_facts(answered, spark, NINE)
    assert wrong_rows(answered) == []
    assert scalar(answered, STAGING) == 0


@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize(
    ("state", "message", "tried"),
    [
        ("40001", "could not serialize access due to concurrent update", 3),
        ("40P01", "deadlock detected", 3),
        ("22012", "division by zero", 1),
        ("53100", "could not extend file", 1),
    ],
)
def test_only_transient_errors_are_retried(
    answered: Database, spark: SparkSession, state: str, message: str, tried: int
) -> None:
    """The table of the last fact raises the error in the first two merges."""
    execute(
        answered,
        "CREATE SEQUENCE times",
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF nextval('times') <= 2 THEN "
        f"RAISE EXCEPTION '{message}' USING ERRCODE = '{state}'; END IF; RETURN NEW; END $$",
        "CREATE TRIGGER refuse BEFORE INSERT ON analytics.test_funnel_fact "
        "FOR EACH ROW EXECUTE FUNCTION refuse()",
    )
    if tried == 1:
        with pytest.raises(Exception, match=message):
            run_facts(answered, spark, NINE)
    else:
        run_facts(answered, spark, NINE)
        assert statuses(answered) == ["failed", "failed", "success"]
    assert scalar(answered, "SELECT last_value FROM times") == tried


@pytest.mark.usefixtures("quick_retries")
def test_a_table_that_stays_locked_for_a_while_is_retried(
    answered: Database, spark: SparkSession
) -> None:
    thread = threading.Thread(target=run_facts, args=(answered, spark, NINE))
    with answered.engine().begin() as other:
        other.execute(text("LOCK TABLE analytics.test_funnel_fact IN SHARE MODE"))
        thread.start()
        wait_until(lambda: statuses(answered) is not None)
    thread.join(60)
    assert str(statuses(answered)).count("success") == 1
    assert "lock timeout" in str(scalar(answered, "SELECT min(error) FROM analytics.etl_metadata"))
