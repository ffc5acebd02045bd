"""The transform alone, on whole base tables, against a full recompute in plain SQL."""

from __future__ import annotations

from decimal import Decimal

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from sqlalchemy import Connection, text

from mcq_analytics.model.base_tables import BASE_COLUMNS, Role
from mcq_analytics.model.facts import (
    QUESTION_INTERACTION,
    SUBMISSION_COUNTS,
    TEST_FUNNEL,
    TEST_SUMMARY,
    ColumnType,
    Fact,
)
from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.identifiers import quoted
from mcq_analytics.transforms.student_tests import student_tests
from mcq_analytics_tests.facts_of import add_sample, execute
from mcq_analytics_tests.recompute import recompute

SPARK_TYPES = {Role.ID: "bigint", Role.TIME: "timestamp", Role.TEXT: "string"}
OF_TESTS = ("total_submissions", "completed_submissions", "timed_submissions", "timed_microseconds")


def test_the_rows_of_students_tests_equal_a_full_recompute(
    database: Database, spark: SparkSession
) -> None:
    add_sample(database, students=20, seed=5, hours=24)
    execute(
        database,
        "DELETE FROM questions WHERE question_id % 9 = 0",
        "UPDATE sessions SET expiry_time = expiry_time - interval '20 min' "
        "WHERE session_id % 5 = 0",
    )
    with database.engine().begin() as connection:
        recompute(connection)
        frames = {name: whole_table(connection, spark, name) for name in BASE_COLUMNS}
        found = student_tests(**frames).persist()
        interactions = found.selectExpr("student_id", "test_id", "inline(interactions)")
        assert_equal(connection, QUESTION_INTERACTION, interactions)
        answered = found.where("questions_attempted IS NOT NULL").join(
            interactions.groupBy("test_id").agg(
                F.countDistinct("question_id").alias("total_questions")
            ),
            "test_id",
        )
        assert_equal(connection, TEST_SUMMARY, answered)
        sums = (
            found.where("submissions IS NOT NULL")
            .groupBy("test_id")
            .agg(
                *(
                    F.sum(one.name).alias(of_test)
                    for one, of_test in zip(SUBMISSION_COUNTS, OF_TESTS, strict=True)
                )
            )
        )
        assert_equal(connection, TEST_FUNNEL, sums, OF_TESTS)
        found.unpersist()


def whole_table(connection: Connection, spark: SparkSession, name: str) -> DataFrame:
    """Return a base table as a DataFrame, without the readers of the package."""
    columns = BASE_COLUMNS[name]
    rows = connection.execute(text(f"SELECT {', '.join(map(quoted, columns))} FROM {name}")).all()
    fields = ", ".join(f"{column} {SPARK_TYPES[role]}" for column, role in columns.items())
    return spark.createDataFrame([tuple(row) for row in rows], fields)


def assert_equal(
    connection: Connection, fact: Fact, frame: DataFrame, values: tuple[str, ...] = ()
) -> None:
    """Assert that a DataFrame has the rows of `expected_<fact>`; times are in microseconds."""
    columns = (*fact.key, *(values or fact.column_names))
    times = {column.name for column in fact.columns if column.type is ColumnType.TIMESTAMP}
    in_sql = [
        f"CAST(extract(epoch FROM {name}) * 1000000 AS bigint)" if name in times else name
        for name in columns
    ]
    expected = connection.execute(text(f"SELECT {', '.join(in_sql)} FROM expected_{fact.name}"))
    in_spark = [F.unix_micros(name) if name in times else F.col(name) for name in columns]
    by_sql, by_spark = (
        sorted(
            (
                tuple(int(value) if isinstance(value, Decimal) else value for value in row)
                for row in rows
            ),
            key=repr,
        )
        for rows in (expected.all(), frame.select(*in_spark).collect())
    )
    assert len(by_sql) > 1
    assert by_spark == by_sql
