"""Plans of statements whose cost must not grow with the square of the rows they touch."""

from __future__ import annotations

from typing import Any

import pytest
from pyspark.sql import SparkSession
from sqlalchemy import event
from sqlalchemy.engine import Engine

from mcq_analytics.postgres.database import Database
from mcq_analytics_tests.facts_of import execute, run_facts, window


def test_a_merge_reads_its_staged_rows_once_and_not_once_per_touched_key(
    database: Database, spark: SparkSession, request: pytest.FixtureRequest
) -> None:
    # Each question is in one test: the planner multiplies the three columns, and expects one row.
    execute(
        database,
        "INSERT INTO answers SELECT n, n % 7919, n % 4000, n % 4000 / 20, 1, 'A', "
        "'2024-01-01 09:10Z' FROM generate_series(0, 3999) n",
        "INSERT INTO analytics.question_interaction_fact SELECT n % 7919, n % 4000 / 20, n % 4000, "
        "'2024-01-01 09:10Z', '2024-01-01 09:10Z', 1, 'A', NULL, false, 0, now() "
        "FROM generate_series(0, 299999) n",
        "ANALYZE answers",
        "ANALYZE analytics.question_interaction_fact",
    )
    plans: list[str] = []

    def explain(_: object, cursor: Any, statement: str, parameters: object, *__: object) -> None:
        if "DELETE FROM analytics.question_interaction_fact f" in statement:
            cursor.execute(f"EXPLAIN {statement}", parameters)
            plans.append("\n".join(line for (line,) in cursor.fetchall()))

    event.listen(Engine, "before_cursor_execute", explain)
    request.addfinalizer(lambda: event.remove(Engine, "before_cursor_execute", explain))
    run_facts(database, spark, window("2024-01-01T09", "2024-01-01T10"))
    [plan] = plans
    assert "Except" in plan
    assert "Nested Loop Anti Join" not in plan
