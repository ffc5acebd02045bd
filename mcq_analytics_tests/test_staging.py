"""Rows between the database and Spark: read in splits, and copied by tasks that may be retried."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pyspark import TaskContext
from pyspark.sql import SparkSession

from mcq_analytics.compute.attempt import Attempt
from mcq_analytics.compute.merge import merge
from mcq_analytics.compute.staging import staging_columns
from mcq_analytics.model.facts import QUESTION_INTERACTION, TEST_FUNNEL, TEST_SUMMARY, Fact
from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.fact_tables import fact_tables
from mcq_analytics.postgres.inspection import inspect_base_tables
from mcq_analytics.postgres.schema import key_types
from mcq_analytics.spark.sink import copy_to_staging, copying
from mcq_analytics.transforms import TRANSFORMS
from mcq_analytics_tests.attempts_at_nine import NINE, add_nine
from mcq_analytics_tests.facts_of import execute, scalar


@pytest.fixture
def answered(database: Database) -> Database:
    """A database with an answer and a submission at nine."""
    add_nine(database)
    return database


def test_a_task_that_fails_after_its_copy_committed_doubles_no_row(
    answered: Database, spark: SparkSession
) -> None:
    """The rows of the first task attempt stay in the staging table and do not count."""
    with answered.engine().begin() as connection:
        base = inspect_base_tables(connection, "public")
        kinds = {name: base.id_type("submissions", name) for name in TEST_FUNNEL.key}
        connection.exec_driver_sql(
            f"CREATE TABLE analytics.staged ({staging_columns(TEST_FUNNEL, kinds)})"
        )
        connection.exec_driver_sql("CREATE TABLE analytics.touched AS SELECT 5::bigint AS test_id")
    frame = spark.sql(
        "SELECT 5L AS test_id, 1L AS total_submissions, 1L AS completed_submissions, "
        "0L AS incomplete_submissions, 100D AS completion_rate, CAST(NULL AS double) AS "
        "avg_submit_time, array(473353) AS active_hours"
    )

    def fail_once(batches: Iterator[Any]) -> Iterator[Any]:
        yield from batches
        context = TaskContext.get()
        assert context is not None
        if context.attemptNumber() == 0:
            raise RuntimeError("the task fails after its copy")

    url = answered.conninfo()
    rows = copying(frame, url, "analytics", "staged").mapInArrow(fail_once, "task_attempt_id long")
    tasks = [row.task_attempt_id for row in rows.collect()]
    assert scalar(answered, "SELECT count(*) FROM analytics.staged") == 2
    tables = fact_tables("analytics", key_types(base))
    with answered.engine().begin() as connection:
        counts = merge(
            connection,
            TEST_FUNNEL,
            fact_table=tables.facts[TEST_FUNNEL.name],
            hours_table=tables.hours[TEST_FUNNEL.name],
            staged="analytics.staged",
            touched="analytics.touched",
            test_questions=None,
            tasks=tasks,
            window=NINE,
        )
    assert (counts.inserted, counts.updated, counts.deleted) == (1, 0, 0)


def test_all_rows_arrive_when_several_tasks_copy_them(
    database: Database, spark: SparkSession
) -> None:
    execute(database, "CREATE TABLE analytics.staged (id bigint, task_attempt_id bigint)")
    frame = spark.range(0, 10_000, 1, 4)
    tasks = copy_to_staging(frame, database.conninfo(), "analytics", "staged")
    assert len(set(tasks)) == 4
    assert (
        scalar(
            database, "SELECT (count(*), count(DISTINCT id), sum(id))::text FROM analytics.staged"
        )
        == "(10000,10000,49995000)"
    )


def test_many_touched_rows_are_read_in_even_splits(
    database: Database, spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcq_analytics.compute.inputs.KEYS_PER_SPLIT", 1_000)
    execute(
        database,
        "INSERT INTO answers SELECT n, n % 500, n % 40, n % 3, n, 'A', "
        "'2024-01-01 09:00Z'::timestamptz + n * interval '0.1 s' FROM generate_series(1, 20000) n",
    )
    with Attempt(database, QUESTION_INTERACTION, NINE, "run") as attempt:
        answers = attempt.read(spark, "answers")
        sizes = [len(part) for part in answers.rdd.glom().collect()]
        frames = {name: attempt.read(spark, name) for name in QUESTION_INTERACTION.reads}
        report = attempt.commit(TRANSFORMS[QUESTION_INTERACTION.name](**frames))
    assert len(sizes) == -(-report.touched // 1_000)
    assert sum(sizes) == 20_000
    assert max(sizes) < 2 * min(sizes)
    assert report.rows_read == 20_000


@pytest.mark.parametrize(
    ("fact", "exchanges"), [(QUESTION_INTERACTION, 0), (TEST_SUMMARY, 0), (TEST_FUNNEL, 4)]
)
def test_few_rows_are_hardly_shuffled(
    answered: Database,
    spark: SparkSession,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fact: Fact,
    exchanges: int,
) -> None:
    def exchanges_in_plan() -> int:
        with Attempt(answered, fact, NINE, "run") as attempt:
            inputs = {name: attempt.read(spark, name) for name in fact.reads}
            TRANSFORMS[fact.name](**inputs).explain()
            return capsys.readouterr().out.count("Exchange")

    assert exchanges_in_plan() == exchanges
    monkeypatch.setattr("mcq_analytics.compute.inputs.QUICK_RECORDS", -1)
    assert exchanges_in_plan() >= 5
