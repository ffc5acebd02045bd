"""What an hour costs: rows that the server fetches, statements, and Spark jobs and stages."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession
from sqlalchemy import event
from sqlalchemy.engine import URL, Engine

from mcq_analytics.model.facts import IdType
from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.partitions import partition_facts
from mcq_analytics_tests.conftest import create_database, drop_database, made_databases
from mcq_analytics_tests.depth import deep
from mcq_analytics_tests.facts_of import add_sample, execute, run_facts, window, wrong_rows
from mcq_analytics_tests.large_tests import (
    fetched,
    fill,
    hour_after,
    rows_since,
    touched_rows,
)
from mcq_analytics_tests.reading import read_by

SMALL, LARGE = 3_000, 15_000
"""Students of the past: 60,000 and 300,000 answers, in five tests."""
INDEX_OF_TESTS = ("CREATE INDEX ON answers (test_id, question_id)",)

Copy = Callable[[int], Database]
Plan = Mapping[str, Any]


@pytest.fixture(scope="module")
def filled(server: URL, templates: Callable[[IdType], str]) -> Iterator[Callable[[int], str]]:
    """A function that returns a template with some students of the past."""
    with made_databases(server, templates) as make:

        @cache
        def of(students: int) -> str:
            made = make()
            fill(made, students)
            return str(made.url.database)

        yield of


@pytest.fixture
def copy(server: URL, filled: Callable[[int], str]) -> Iterator[Copy]:
    """A function that returns a database with some students of the past."""
    urls: list[URL] = []

    def make(students: int) -> Database:
        urls.append(create_database(server, f"large_{len(urls)}", filled(students)))
        return Database(urls[-1], "public", "analytics")

    yield make
    for url in urls:
        drop_database(url)


def test_the_facts_made_in_sql_are_those_that_runs_compute(copy: Copy, spark: SparkSession) -> None:
    database = copy(500)
    run_facts(database, spark, hour_after(500))
    assert wrong_rows(database) == []


def rows_of_an_hour(
    database: Database, spark: SparkSession, students: int, *prepared: str
) -> tuple[int, dict[str, int]]:
    """Return the rows that the last hour touches, and those fetched for it by table."""
    over = hour_after(students)
    touched = touched_rows(database, over)
    execute(database, *prepared)
    before = fetched(database)
    report = run_facts(database, spark, over)
    assert report.touched == 100
    return touched, rows_since(database, before)


OTHERS = (
    *INDEX_OF_TESTS,
    "CREATE INDEX ON answers (test_id)",
    "CREATE INDEX ON answers (question_id)",
    "CREATE INDEX ON submissions (student_id)",
)


@pytest.mark.parametrize(
    ("indexes", "analyze", "way"),
    [
        ((), "", "driver"),
        ((), "ANALYZE", "driver"),
        (INDEX_OF_TESTS, "", "slices"),
        pytest.param(INDEX_OF_TESTS, "ANALYZE", "driver", marks=deep),
        pytest.param(OTHERS, "", "driver", marks=deep),
        (OTHERS, "ANALYZE", "slices"),
    ],
    ids=[
        "needed indexes, never analyzed",
        "needed indexes",
        "with one by test, never analyzed, read in slices",
        "with one by test",
        "with more, never analyzed",
        "with more, read in slices",
    ],
)
def test_the_rows_fetched_for_an_hour_are_a_small_multiple_of_those_it_touches(
    copy: Copy,
    spark: SparkSession,
    monkeypatch: pytest.MonkeyPatch,
    indexes: tuple[str, ...],
    analyze: str,
    way: str,
) -> None:
    read_by(way, monkeypatch)
    prepared = [*indexes, *([analyze] if analyze else [])]
    touched, rows = rows_of_an_hour(copy(LARGE), spark, LARGE, *prepared)
    assert touched == 2_200
    assert sum(rows.values()) <= 10 * touched, rows
    _, in_small = rows_of_an_hour(copy(SMALL), spark, SMALL, *prepared)
    few, many = sum(in_small.values()), sum(rows.values())
    assert 0.8 * few <= many <= 1.2 * few, (in_small, rows)


def nodes(plan: Plan) -> Iterator[Plan]:
    """Return a node of a plan and all below it."""
    yield plan
    for below in plan.get("Plans", ()):
        yield from nodes(below)


def repeated_scans(plan: Plan) -> list[str]:
    """Return the scans that a plan repeats as a whole for each row of a nested loop."""
    return [
        f"{scan['Node Type']} on {scan.get('Relation Name') or scan.get('CTE Name')}"
        for loop in nodes(plan)
        if loop["Node Type"] == "Nested Loop"
        for scan in nodes(loop["Plans"][1])
        if scan["Node Type"] in ("Seq Scan", "CTE Scan", "Function Scan")
    ]


@pytest.mark.parametrize("partitions", [1, 4])
def test_no_statement_of_a_merge_repeats_a_scan_for_each_touched_key(
    database: Database, spark: SparkSession, request: pytest.FixtureRequest, partitions: int
) -> None:
    # Each question is in one test: the planner multiplies the three columns, and expects one row.
    execute(
        database,
        "INSERT INTO answers SELECT n, n % 7919, n % 4000, n % 4000 / 20, 1, 'A', "
        "'2024-01-01 09:10Z' FROM generate_series(0, 3999) n",
        "INSERT INTO submissions SELECT n % 7919, n % 4000 / 20, '2024-01-01 09:20Z', 'completed' "
        "FROM generate_series(0, 3999) n",
        "INSERT INTO analytics.question_interaction_fact SELECT n % 7919, n % 4000 / 20, n % 4000, "
        "'2024-01-01 09:10Z', '2024-01-01 09:10Z', 1 + n % 2, 'A', NULL, n % 2 = 1, 0, now() "
        "FROM generate_series(0, 299999) n",
        "INSERT INTO analytics.test_summary_fact SELECT DISTINCT n % 7919, n % 4000 / 20, "
        "20, 1, 0, 0, 9, now() FROM generate_series(0, 299999) n",
        "INSERT INTO analytics.student_test_submissions SELECT n / 20, n, 1, 1, 0, 0 "
        "FROM generate_series(0, 3999) n",
        "INSERT INTO analytics.test_funnel_fact SELECT n, 20, 20, 0, 100, NULL, now(), 0, 0 "
        "FROM generate_series(0, 199) n",
        "INSERT INTO analytics.student_test_hour SELECT '2024-01-01 09:00Z', n, n / 20 "
        "FROM generate_series(0, 3999) n",
        # What has no base rows any more, in every table.
        "INSERT INTO analytics.student_test_hour VALUES ('2024-01-01 09:00Z', 5001, 900)",
        "INSERT INTO analytics.question_interaction_fact VALUES (5001, 900, 1, "
        "'2024-01-01 09:10Z', '2024-01-01 09:10Z', 1, 'A', NULL, false, 0, now())",
        "INSERT INTO analytics.test_summary_fact VALUES (5001, 900, 1, 1, 0, 0, 0, now())",
        "INSERT INTO analytics.student_test_submissions VALUES (900, 5001, 1, 1, 0, 0)",
        "INSERT INTO analytics.test_funnel_fact VALUES (900, 1, 1, 0, 100, NULL, now(), 0, 0)",
    )
    with database.engine().begin() as connection:
        partition_facts(connection, "analytics", partitions)
    execute(database, "ANALYZE")
    plans: dict[str, Plan] = {}

    def explain(
        _: object, cursor: Any, statement: str, parameters: object, __: object, is_many: bool
    ) -> None:
        written = re.match(r"\s*(INSERT|UPDATE|DELETE|CREATE TEMPORARY TABLE)", statement)
        if written and "analytics." in statement and not is_many:
            cursor.execute(f"EXPLAIN (FORMAT JSON) {statement}", parameters)
            plans[statement] = cursor.fetchone()[0][0]["Plan"]

    event.listen(Engine, "before_cursor_execute", explain)
    request.addfinalizer(lambda: event.remove(Engine, "before_cursor_execute", explain))
    run_facts(database, spark, window("2024-01-01T09", "2024-01-01T10"))
    merged = [statement for statement in plans if "_difference" in statement]
    assert len(merged) == 13
    assert [
        (scan, statement) for statement, plan in plans.items() for scan in repeated_scans(plan)
    ] == []


@pytest.fixture
def statements(database: Database, server_home: Path) -> Callable[[], list[str]]:
    """A function that returns the statements that the database has executed since the last call.

    Without the sessions in which new Python workers ask for the server's types, once each: how many
    workers are new depends on what else Spark has computed.
    """
    log = server_home / "postgres" / "log"
    execute(database, f"ALTER DATABASE {database.url.database} SET log_statement TO 'all'")
    read = log.stat().st_size

    def since() -> list[str]:
        nonlocal read
        with log.open(errors="replace") as file:
            file.seek(read)
            lines = file.readlines()
            read = file.tell()
        found = [line for line in lines if re.search(" LOG:  (statement: |execute )", line)]
        of_types = {session_of(line) for line in found if "typreceive" in line}
        return [line for line in found if session_of(line) not in of_types]

    return since


def session_of(line: str) -> str:
    """Return the process id in a line of the server's log."""
    found = re.search(r" \[(\d+)\] LOG:", line)
    assert found is not None
    return found[1]


DAY = window("2024-01-01T00", "2024-01-02T00")
HOUR_OF_DAY = window("2024-01-01T10", "2024-01-01T11")


@pytest.mark.parametrize(
    ("way", "most"), [("driver", 165), ("slices", 215), ("ranges", 235), ("ranges of answers", 200)]
)
def test_an_attempt_executes_a_bounded_number_of_statements(
    database: Database,
    spark: SparkSession,
    monkeypatch: pytest.MonkeyPatch,
    statements: Callable[[], list[str]],
    way: str,
    most: int,
) -> None:
    read_by(way, monkeypatch)
    add_sample(database, students=30, seed=7, hours=24)
    found = []
    for over in (DAY, HOUR_OF_DAY):
        statements()
        run_facts(database, spark, over)
        found.append(statements())
    assert all(found)
    assert max(map(len, found)) <= most, ([len(some) for some in found], found)


def jobs_and_stages(spark: SparkSession) -> tuple[int, int]:
    """Return how many jobs and stages Spark has run so far."""
    jobs = spark._jsc.sc().statusStore().jobsList(None)
    ids = [jobs.apply(index).jobId() for index in range(jobs.size())]
    stages = [
        jobs.apply(index).stageIds().apply(at)
        for index in range(jobs.size())
        for at in range(jobs.apply(index).stageIds().size())
    ]
    return 1 + max(ids, default=-1), 1 + max(stages, default=-1)


@pytest.mark.own_java
@pytest.mark.parametrize(
    ("way", "jobs", "stages"),
    [("driver", 1, 1), ("slices", 20, 48), ("ranges", 24, 70), ("ranges of answers", 24, 70)],
)
def test_an_attempt_runs_a_bounded_number_of_spark_jobs_and_stages(
    database: Database,
    spark: SparkSession,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
    jobs: int,
    stages: int,
) -> None:
    read_by(way, monkeypatch)
    add_sample(database, students=30, seed=7, hours=24)
    found = []
    for over in (DAY, HOUR_OF_DAY):
        before = jobs_and_stages(spark)
        run_facts(database, spark, over)
        after = jobs_and_stages(spark)
        found.append((after[0] - before[0], after[1] - before[1]))
    assert all(0 < some[0] <= jobs and 0 < some[1] <= stages for some in found), found
