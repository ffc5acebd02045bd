"""Attempts: all or nothing in one snapshot, recorded, and nothing left behind by one that died."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession
from sqlalchemy import text

from mcq_analytics.compute.attempt import Attempt
from mcq_analytics.errors import McqError, SparkServerLostError
from mcq_analytics.postgres.database import Database
from mcq_analytics.transforms.student_tests import student_tests
from mcq_analytics_tests.attempts_at_nine import LAST_ATTEMPT, NINE, RUNNING, STAGING, add_nine
from mcq_analytics_tests.facts_of import contents, execute, run_facts, scalar, wrong_rows
from mcq_analytics_tests.reading import WAYS, read_by


@pytest.fixture
def answered(database: Database) -> Database:
    """A database with an answer and a submission at nine."""
    add_nine(database)
    return database


def test_an_attempt_that_fails_changes_no_fact_and_is_recorded(
    answered: Database, spark: SparkSession
) -> None:
    run_facts(answered, spark, NINE)
    before = contents(answered)
    execute(answered, "UPDATE answers SET submitted_option = 'B'")

    def broken(**inputs: DataFrame) -> DataFrame:
        # The row is needed, and so the division.
        return student_tests(**inputs).where("student_id / 0 > 0")

    with pytest.raises(Exception, match="DIVIDE_BY_ZERO"):
        fail_with(answered, spark, broken)
    assert contents(answered) == before
    assert "DIVIDE_BY_ZERO" in str(scalar(answered, LAST_ATTEMPT))
    assert scalar(answered, STAGING) == 0
    assert scalar(answered, RUNNING) == 0
    run_facts(answered, spark, NINE)
    assert wrong_rows(answered) == []


def fail_with(database: Database, spark: SparkSession, transform: Any) -> None:
    with Attempt(database, NINE, "run") as attempt:
        attempt.commit(transform(**attempt.inputs(spark)), transform)


def test_tables_of_two_sessions_are_not_mixed(answered: Database, spark: SparkSession) -> None:
    # A step that is begun anew can be computed; a query over both sessions cannot.
    def read_in_two_sessions() -> None:
        with Attempt(answered, NINE, "run") as attempt:
            attempt.read(spark, "answers")
            attempt.read(spark.newSession(), "questions")

    with pytest.raises(SparkServerLostError, match="lost between two of the tables"):
        read_in_two_sessions()
    assert "lost between two of the tables" in str(scalar(answered, LAST_ATTEMPT))


@pytest.mark.parametrize("way", WAYS)
def test_all_inputs_are_read_in_one_snapshot(
    answered: Database, spark: SparkSession, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    read_by(way, monkeypatch)
    with Attempt(answered, NINE, "run") as attempt:
        execute(
            answered,
            "INSERT INTO submissions VALUES (7, 5, '2024-01-01 09:30Z', 'timeout')",
            "DELETE FROM answers",
        )
        attempt.commit(student_tests(**attempt.inputs(spark)), student_tests)
    assert (
        scalar(
            answered,
            "SELECT (total_submissions, avg_submit_time, answer_count, questions_attempted)::text "
            "FROM analytics.test_funnel_fact, analytics.question_interaction_fact, "
            "analytics.test_summary_fact",
        )
        == "(1,600,1,1)"
    )


@pytest.mark.parametrize("way", ["slices", "ranges"])
def test_no_task_outlives_its_attempt(
    answered: Database, spark: SparkSession, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """There are joins with an empty side, and Spark might cancel the reads of the other side.

    Tasks that outlived the attempt would find their snapshot gone.
    """
    read_by(way, monkeypatch)
    execute(
        answered,
        "INSERT INTO answers SELECT n, n, n, n % 3, 1, 'A', '2024-01-01 09:10Z' "
        "FROM generate_series(10, 4000) n",
        "DELETE FROM submissions",
    )
    run_facts(answered, spark, NINE)
    left = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND "
    assert scalar(answered, left + "application_name LIKE '% task'") == 0


@pytest.mark.parametrize(
    ("error", "recorded"),
    [
        (None, '(failed,"the asset failed before its rows were stored; see its run")'),
        (ValueError("broken"), "(failed,broken)"),
        (KeyboardInterrupt(), '(cancelled,"somebody cancelled the run")'),
    ],
)
def test_an_attempt_that_ends_without_a_commit_is_recorded_and_cleaned_up(
    answered: Database, error: BaseException | None, recorded: str
) -> None:
    with suppress(ValueError, KeyboardInterrupt), Attempt(answered, NINE, "run"):
        if error is not None:
            raise error
    assert scalar(answered, LAST_ATTEMPT) == recorded
    assert scalar(answered, STAGING) == scalar(answered, RUNNING) == 0


def test_a_dead_attempt_is_recorded_as_ended_before_its_retry_began(
    answered: Database, spark: SparkSession
) -> None:
    dead = Attempt(answered, NINE, "first-run")
    dead.begin()
    dead.close()
    run_facts(answered, spark, NINE, run_id="its-retry")
    ended = (
        "SELECT array_agg(run_id || ' ' || status ORDER BY finished_at) FROM analytics.etl_metadata"
    )
    assert scalar(answered, ended) == ["first-run failed"] * 3 + ["its-retry success"] * 3
    order = (
        "SELECT bool_and(d.started_at < d.finished_at AND d.finished_at <= r.started_at) "
        "FROM analytics.etl_metadata d, analytics.etl_metadata r "
        "WHERE d.run_id = 'first-run' AND r.run_id = 'its-retry'"
    )
    assert scalar(answered, order) is True


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("DROP TABLE sessions", "the base table public.sessions is missing"),
        ("ALTER TABLE answers DROP test_id", "public.answers has no column test_id"),
        (
            "ALTER TABLE answers ALTER student_id TYPE numeric",
            "the id public.answers.student_id has the unsupported type numeric",
        ),
        (
            "ALTER TABLE answers ALTER student_id TYPE text",
            "student_id is a text in public.answers but a number in public.submissions",
        ),
        (
            "ALTER TABLE answers ALTER question_id TYPE integer",
            "analytics.question_interaction_fact.question_id is bigint, but the base tables have",
        ),
        (
            "DROP TABLE analytics.test_funnel_fact",
            "the table analytics.test_funnel_fact is missing: run mcq-analytics init-db",
        ),
        (
            "ALTER TABLE analytics.test_summary_fact DROP accuracy_percent",
            "analytics.test_summary_fact.accuracy_percent is missing: run mcq-analytics init-db",
        ),
    ],
)
def test_a_missing_or_malformed_table_is_named(
    answered: Database, damage: str, message: str
) -> None:
    execute(answered, damage)
    with (
        pytest.raises(McqError, match=message),
        Attempt(answered, NINE, "run"),
    ):
        pass
    assert message.split(maxsplit=1)[0] in str(scalar(answered, LAST_ATTEMPT))


@pytest.mark.parametrize("way", ["slices", "ranges"])
def test_no_spark_plan_shows_the_password(
    answered: Database,
    spark: SparkSession,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    way: str,
) -> None:
    read_by(way, monkeypatch)
    url = answered.url.set(password="s3cret-p4ss")
    database = Database(url, "public", "analytics")
    with Attempt(database, NINE, "run") as attempt:
        attempt.read(spark, "answers").explain(extended=True)
        plan = capsys.readouterr().out
    assert "mcq_postgres" in plan
    assert "s3cret" not in plan
    with database.engine().connect() as connection:
        assert (
            connection.execute(
                text("SELECT count(*) FROM analytics.etl_metadata WHERE error LIKE '%s3cret%'")
            ).scalar()
            == 0
        )
