"""Rows between the database and Spark: read in splits, and copied by tasks that may be retried."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from pyspark import TaskContext
from pyspark.sql import DataFrame, SparkSession

from mcq_analytics.compute.attempt import Attempt
from mcq_analytics.compute.difference import MergeCounts
from mcq_analytics.compute.merge import Merge, Staged
from mcq_analytics.compute.staging import TOUCHED, Staging
from mcq_analytics.model.facts import FACTS
from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.fact_tables import FactTables, fact_tables
from mcq_analytics.postgres.inspection import inspect_base_tables
from mcq_analytics.postgres.schema import key_types
from mcq_analytics.spark.parts import PARTS
from mcq_analytics.spark.sink import collect_to_staging, copy_to_staging, copying
from mcq_analytics.transforms.student_tests import student_tests
from mcq_analytics_tests.attempts_at_nine import NINE, add_nine
from mcq_analytics_tests.disagreements import disagreements_now
from mcq_analytics_tests.facts_of import execute, run_facts, scalar, wrong_rows
from mcq_analytics_tests.reading import read_by
from mcq_analytics_tests.small_tables import Tables, computed


@pytest.fixture
def answered(database: Database) -> Database:
    """A database with an answer and a submission at nine."""
    add_nine(database)
    return database


@pytest.fixture
def staging(database: Database) -> Staging:
    """Staging tables without rows."""
    made = Staging("analytics")
    with database.engine().begin() as connection:
        made.create(connection, inspect_base_tables(connection, "public"))
    return made


def tables_of(database: Database) -> FactTables:
    with database.engine().connect() as connection:
        return fact_tables("analytics", key_types(inspect_base_tables(connection, "public")))


def test_a_task_that_fails_after_its_copy_committed_doubles_no_row(
    database: Database, staging: Staging, spark: SparkSession
) -> None:
    """The rows of the first task attempt stay in the staging tables and do not count."""
    frame = computed(Tables(spark), [(1, 7, 3, 5, 1, "A", 0)], [(7, 5, 40, "completed")])

    def fail_once(batches: Iterator[Any]) -> Iterator[Any]:
        yield from batches
        context = TaskContext.get()
        assert context is not None
        if context.attemptNumber() == 0:
            raise RuntimeError("the task fails after its copy")

    rows = copying(frame.coalesce(1), database.conninfo(), "analytics", staging.names())
    done = rows.mapInArrow(fail_once, "task_attempt_id long").collect()
    parts = {part: staging.quoted(part) for part in PARTS}
    for table in parts.values():
        assert scalar(database, f"SELECT count(*) FROM {table}") == 2
    with database.engine().begin() as connection:
        staging.store_touched(
            connection, "SELECT 7::bigint AS student_id, 5::bigint AS test_id", {}
        )
        counts = Merge(
            connection,
            tables_of(database),
            Staged(staging.quoted(TOUCHED), parts, [row.task_attempt_id for row in done]),
            NINE,
            repairing=False,
            is_large=False,
        ).run()
    assert counts == {fact.name: MergeCounts(inserted=1) for fact in FACTS}
    assert disagreements_now(database) == []


@pytest.mark.parametrize(("copy", "tasks"), [(collect_to_staging, 1), (copy_to_staging, 4)])
def test_all_rows_arrive_in_their_tables(
    database: Database,
    staging: Staging,
    spark: SparkSession,
    copy: Callable[[DataFrame, str, str, Mapping[str, str]], list[int]],
    tasks: int,
) -> None:
    interaction = (
        "named_struct('question_id', q, 'first_answer_time', now(), 'last_answer_time', now(), "
        "'answer_count', 1L, 'final_answer_option', 'A', 'is_correct', true, 'revisited', false, "
        "'time_spent', 0D)"
    )
    frame = spark.range(0, 10_000, 1, 4).selectExpr(
        "id AS student_id",
        "5L AS test_id",
        f"transform(sequence(1L, id % 3 + 1), q -> {interaction}) AS interactions",
        # Every fifth has no answer, and every seventh no submission.
        "CASE WHEN id % 5 > 0 THEN id % 3 + 1 END AS questions_attempted",
        "id % 2 AS correct_answers",
        "0D AS accuracy_percent",
        "0D AS time_spent",
        "CASE WHEN id % 7 > 0 THEN 1L END AS submissions",
        "0L AS completed_submissions",
        "1L AS timed_submissions",
        "CAST(id AS decimal(38, 0)) AS timed_microseconds",
        "array(1, 2) AS active_hours",
    )
    found = copy(frame, database.conninfo(), "analytics", staging.names())
    assert len(set(found)) == tasks
    ids = range(10_000)
    expected = {
        "interactions": sum(n % 3 + 1 for n in ids if n % 5),
        "summaries": sum(1 for n in ids if n % 5),
        "submissions": sum(1 for n in ids if n % 7),
        "hours": 20_000,
    }
    keys = {
        "interactions": "(student_id, test_id, question_id)",
        "hours": "(student_id, test_id, hour)",
    }
    for part, rows in expected.items():
        key = keys.get(part, "(student_id, test_id)")
        counted = f"SELECT ARRAY[count(*), count(DISTINCT {key})] FROM {staging.quoted(part)}"
        assert scalar(database, counted) == [rows, rows]
    sums = f"SELECT sum(timed_microseconds) FROM {staging.quoted('submissions')}"
    assert scalar(database, sums) == sum(n for n in ids if n % 7)


READS = "SELECT relname FROM pg_class WHERE relname LIKE 'stg%reads'"


@pytest.mark.parametrize("way", ["slices", "ranges"])
def test_many_touched_rows_are_read_in_even_splits(
    database: Database, spark: SparkSession, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    read_by(way, monkeypatch)
    monkeypatch.setattr("mcq_analytics.compute.inputs.KEYS_PER_SPLIT", 1_000)
    monkeypatch.setattr("mcq_analytics.compute.inputs.ROWS_PER_SPLIT", 2_000)
    execute(
        database,
        "INSERT INTO answers SELECT n, n % 4000, n % 40, n % 3, n, 'A', "
        "'2024-01-01 09:00Z'::timestamptz + n * interval '0.1 s' FROM generate_series(1, 20000) n",
    )
    with Attempt(database, NINE, "run") as attempt:
        assert attempt.read(spark, "answers").count() == 20_000
        sizes = scalar(
            database,
            "SELECT array_agg(rows ORDER BY split) "
            f"FROM analytics.{scalar(database, READS)} WHERE input = 'answers'",
        )
        report = attempt.commit(student_tests(**attempt.inputs(spark)), student_tests)
    assert isinstance(sizes, list)
    assert report.touched == 12_000
    assert len(sizes) == (12 if way == "slices" else 10)
    assert sum(sizes) == 20_000
    assert max(sizes) < 2 * min(sizes)
    assert report.rows_read == 20_000


def test_few_rows_are_not_shuffled_and_need_no_python_worker(
    answered: Database,
    spark: SparkSession,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def plan() -> str:
        with Attempt(answered, NINE, "run") as attempt:
            student_tests(**attempt.inputs(spark)).explain()
            return capsys.readouterr().out

    few = plan()
    assert few.count("Exchange") == 0
    assert "mcq_postgres" not in few
    monkeypatch.setattr("mcq_analytics.compute.inputs.QUICK_RECORDS", -1)
    assert plan().count("Exchange") >= 3
    read_by("slices", monkeypatch)
    assert "mcq_postgres" in plan()
    read_by("ranges", monkeypatch)
    assert "LeftSemi" in plan()


@pytest.mark.parametrize(
    "tampering",
    [
        "DELETE FROM analytics.test_funnel_fact",
        """UPDATE analytics.test_funnel_fact SET total_submissions = 1, completed_submissions = 0,
            incomplete_submissions = 1, completion_rate = 0, avg_submit_time = NULL,
            timed_submissions = 0, timed_microseconds = 0""",
    ],
)
def test_a_funnel_that_somebody_changed_is_summed_up_when_its_rows_cannot_be_right(
    answered: Database, spark: SparkSession, tampering: str
) -> None:
    """A row moved from there by differences would break a constraint, and no run could pass."""
    execute(
        answered,
        "INSERT INTO submissions SELECT 70 + n, test_id, submit_time, 'completed' "
        "FROM submissions, generate_series(1, 2) n",
    )
    run_facts(answered, spark, NINE)
    execute(answered, tampering, "DELETE FROM submissions WHERE student_id > 70")
    run_facts(answered, spark, NINE)
    assert wrong_rows(answered) == []
