"""Computing facts in a test without Dagster, with attempts and transforms alone."""

from __future__ import annotations

from pyspark.sql import SparkSession
from sqlalchemy import text

from mcq_analytics.compute.attempt import Attempt
from mcq_analytics.compute.report import AttemptReport
from mcq_analytics.model.facts import FACTS
from mcq_analytics.model.windows import Window, parse_hour
from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.inspection import inspect_base_tables
from mcq_analytics.sample.sample_load import load_sample
from mcq_analytics.transforms.student_tests import student_tests
from mcq_analytics_tests.recompute import differences

TABLES = (*(fact.name for fact in FACTS), "student_test_submissions", "student_test_hour")
"""Our tables that hold results."""


def window(start: str, end: str) -> Window:
    """Return the window between two ISO times."""
    return Window(parse_hour(start), parse_hour(end))


def add_sample(database: Database, *, students: int, seed: int, hours: int = 48) -> dict[str, int]:
    """Add a sample from the start of 2024 to the base tables; return the rows added to each."""
    with database.engine().connect() as connection:
        base = inspect_base_tables(connection, database.source_schema)
    start = parse_hour("2024-01-01T00:00")
    return load_sample(database, base, students=students, start=start, hours=hours, seed=seed)


def run_facts(
    database: Database, spark: SparkSession, over: Window, run_id: str = "test-run"
) -> AttemptReport:
    """Compute the facts over a window and return the report."""
    with Attempt(database, over, run_id) as attempt:
        return attempt.commit(student_tests(**attempt.inputs(spark)), student_tests)


def wrong_rows(database: Database, *, zoned: bool = True) -> list[str]:
    """Return the differences between the facts and a full recompute in plain SQL."""
    with database.engine().begin() as connection:
        return differences(connection, database.source_schema, database.fact_schema, zoned=zoned)


def contents(database: Database) -> dict[str, list[object]]:
    """Return all rows of the facts, with `updated_at`, and of the tables beside them."""
    with database.engine().connect() as connection:
        return {
            table: sorted(
                connection.execute(
                    text(f"SELECT to_jsonb(t)::text FROM {database.fact_schema}.{table} t")
                ).scalars()
            )
            for table in TABLES
        }


def execute(database: Database, *statements: str) -> None:
    """Execute SQL statements in one transaction."""
    with database.engine().begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


def scalar(database: Database, statement: str) -> object:
    """Return the single value of a query."""
    with database.engine().connect() as connection:
        return connection.execute(text(statement)).scalar_one()
