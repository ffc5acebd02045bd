"""Processes run random windows at the same time, while the base tables keep changing.

`PROCESSES` sets how many, `RUNS` how often each runs; `make test-deep` sets them high.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from datetime import datetime
from time import sleep

import pytest
from pyspark.sql import SparkSession

from mcq_analytics.model.windows import ranges
from mcq_analytics.postgres.database import Database
from mcq_analytics_tests.affected_hours import hours_to_run
from mcq_analytics_tests.disagreements import looking
from mcq_analytics_tests.facts_of import execute, run_facts, scalar, window, wrong_rows
from mcq_analytics_tests.servers import CHECKOUT
from mcq_analytics_tests.tally import TALLY

PROCESSES = int(os.environ.get("PROCESSES", "2"))
RUNS = int(os.environ.get("RUNS", "2"))
BEGIN, HOURS = "2024-01-01T00", 6
WHOLE = window(BEGIN, "2024-01-01T06")
SOME = "answer_id % {n} = {k}"
MOMENT = "'2024-01-01 00:00Z'::timestamptz + interval '1 second' * ({second})"

# Kind of change, condition for its rows, statement; `n`, `k`, `second` and `id` are random.
CHANGES = (
    (
        "an answer is added",
        "answer_id = {id}",
        f"INSERT INTO answers VALUES ({{id}}, {{k}} % 9, {{id}} % 7, {{n}} % 3, 1, 'A', {MOMENT})",
    ),
    ("an answer is changed", SOME, f"UPDATE answers SET submitted_option = 'B' WHERE {SOME}"),
    ("an answer is changed", SOME, f"UPDATE answers SET student_id = {{k}} % 9 WHERE {SOME}"),
    ("an answer is deleted", SOME, f"DELETE FROM answers WHERE {SOME}"),
    (
        "an answer moves to another hour",
        SOME,
        f"UPDATE answers SET timestamp = {MOMENT} WHERE {SOME}",
    ),
    (
        "a submission is added",
        f"submit_time = {MOMENT}",
        f"INSERT INTO submissions VALUES ({{k}} % 9, {{n}} % 3, {MOMENT}, 'completed')",
    ),
    (
        "a submission is changed",
        "student_id = {k} % 9",
        "UPDATE submissions SET completion_status = 'timeout' WHERE student_id = {k} % 9",
    ),
    (
        "a session is added, deleted or expires at another time",
        "session_id = {k} % 4",
        f"UPDATE sessions SET expiry_time = {MOMENT} WHERE session_id = {{k}} % 4",
    ),
    (
        "an answer key is added, changed or deleted",
        "question_id = {k} % 7",
        "UPDATE questions SET correct_option = 'B' WHERE question_id = {k} % 7",
    ),
)


@pytest.fixture
def busy(database: Database) -> Database:
    """A database with students who answer and submit for six hours."""
    moment = MOMENT.format(second="n * 107 % 21600")
    execute(
        database,
        f"INSERT INTO answers SELECT n, n % 9, n % 7, n % 3, n % 4, 'A', {moment} "
        "FROM generate_series(1, 600) n",
        "INSERT INTO questions SELECT n, 'A' FROM generate_series(0, 6) n",
        "INSERT INTO sessions SELECT n, NULL FROM generate_series(0, 3) n",
        f"INSERT INTO submissions SELECT n % 9, n % 3, {moment}, 'completed' "
        "FROM generate_series(1, 60) n",
    )
    return database


def change_something(database: Database, chance: random.Random, number: int) -> set[datetime]:
    """Change the base tables and return the hours that must run again."""
    drawn = {
        "n": chance.randint(20, 90),
        "k": chance.randrange(20),
        "second": chance.randrange(HOURS * 3600),
        "id": 1_000 + number,
    }
    kind, condition, statement = (part.format(**drawn) for part in chance.choice(CHANGES))
    TALLY["changes"] += 1
    with database.engine("writer").begin() as connection:
        return hours_to_run(connection, kind, condition, statement)


@pytest.mark.timeout(0)
def test_concurrent_runs_under_a_writer_are_exact_and_raise_no_error(
    busy: Database, spark: SparkSession, of_suite_server: dict[str, str]
) -> None:
    arguments = [BEGIN, str(HOURS), str(RUNS)]
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "mcq_analytics_tests.random_runs", f"run-{number}", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **of_suite_server, "PYTHONPATH": str(CHECKOUT)},
        )
        for number in range(PROCESSES)
    ]
    chance = random.Random(PROCESSES)
    stale = {hour.start for hour in WHOLE.chunks(1)}
    number = 0
    with looking(busy):
        while any(process.poll() is None for process in running):
            number += 1
            stale |= change_something(busy, chance, number)
            sleep(0.05)
    outputs = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0] * PROCESSES, outputs
    assert [len(said.splitlines()) for said, _ in outputs] == [RUNS] * PROCESSES
    failed = "SELECT count(*) FROM analytics.etl_metadata WHERE status = 'failed'"
    assert scalar(busy, failed) == 0
    TALLY["attempts at the same time"] += int(
        str(scalar(busy, "SELECT count(*) FROM analytics.etl_metadata"))
    )
    TALLY["waits for another run"] += sum(said.count("waiting for") for _, said in outputs)
    stale = {hour for hour in stale if WHOLE.start <= hour < WHOLE.end}
    for affected in ranges(stale):
        run_facts(busy, spark, affected)
    wrong = wrong_rows(busy)
    TALLY["rows wrong"] += len(wrong)
    assert wrong == []
