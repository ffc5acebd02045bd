"""Warms a new Spark server, so that Java has compiled what the first runs need.

Usage: python -m mcq_analytics.spark.warm_up

It computes the facts of generated answers on the server under MCQ_HOME, in the steps of a small
and of a large run. `mcq-analytics spark-server` starts it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from mcq_analytics.errors import McqError
from mcq_analytics.model.base_tables import BASE_COLUMNS, Role
from mcq_analytics.model.facts import STUDENT_TEST
from mcq_analytics.postgres.errors import first_line
from mcq_analytics.settings.spark import SparkSettings, cluster_settings
from mcq_analytics.settings.variables import read_variables
from mcq_analytics.spark.connect import connect
from mcq_analytics.spark.endpoints import local_endpoint
from mcq_analytics.spark.scaling import MILLION, of_load, of_session, session_config
from mcq_analytics.transforms.student_tests import student_tests

SMALL_ANSWERS, SMALL_RUNS = 3_000, 5
LARGE_ANSWERS, LARGE_RUNS = 400_000, 3
"""More of either changes little: docs/decisions/0006-spark-server.md has the figures."""
QUESTIONS = 20
TESTS = 64

_SPARK_TYPES = {Role.ID: "bigint", Role.TEXT: "string", Role.TIME: "timestamp"}


def warm_up(spark: SparkSession, settings: SparkSettings) -> None:
    """Compute the facts of generated answers, several times.

    Raises:
        PySparkException: a query failed, or the server was lost.

    """
    for _ in range(SMALL_RUNS):
        tables = {name: _table(name, SMALL_ANSWERS) for name in BASE_COLUMNS}
        frames = {name: spark.createDataFrame(tables[name]).coalesce(1) for name in tables}
        student_tests(**frames).toArrow()
    for name, value in of_load(session_config(settings, MILLION)).items():
        spark.conf.set(name, value)
    small = {name: _table(name, LARGE_ANSWERS) for name in BASE_COLUMNS if name != "answers"}
    for _ in range(LARGE_RUNS):
        frames = {name: spark.createDataFrame(rows) for name, rows in small.items()}
        frames["answers"] = _answers_of_tasks(spark)
        keys = spark.createDataFrame(small["submissions"].select(list(STUDENT_TEST)))
        for name in ("answers", "submissions"):
            touched = frames[name].join(F.broadcast(keys), list(STUDENT_TEST), "left_semi")
            frames[name] = touched.repartition(*STUDENT_TEST)
        student_tests(**frames).mapInArrow(_row_counts, "rows bigint").collect()


def generated(table: str, numbers: pa.Array) -> pa.RecordBatch:
    """Return the rows of a base table with some numbers: answers to tests of `QUESTIONS` each."""
    sitting = pc.divide(numbers, QUESTIONS) if table == "answers" else numbers
    question = pc.subtract(numbers, pc.multiply(pc.divide(numbers, QUESTIONS), QUESTIONS))
    ids = {
        "answer_id": numbers,
        "question_id": question if table == "answers" else numbers,
        "test_id": pc.bit_wise_and(sitting, TESTS - 1),
    }
    microseconds = pc.multiply(numbers, 1_000_000)
    values = {
        Role.TEXT: pc.if_else(pc.equal(pc.bit_wise_and(numbers, 1), 0), "A", "completed"),
        Role.TIME: microseconds.cast(pa.timestamp("us", "UTC")),
    }
    columns = {
        name: ids.get(name, sitting) if role is Role.ID else values[role]
        for name, role in BASE_COLUMNS[table].items()
    }
    return pa.RecordBatch.from_pydict(columns)


def _table(name: str, answers: int) -> pa.Table:
    """Return the rows of a base table for some answers."""
    rows = answers if name == "answers" else answers // QUESTIONS
    return pa.Table.from_batches([generated(name, pa.array(range(rows), pa.int64()))])


def _answers_of_tasks(spark: SparkSession) -> DataFrame:
    """Return answers that come from Python workers, as those of a large run do."""

    def generate(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield generated("answers", batch["id"])

    columns = BASE_COLUMNS["answers"].items()
    schema = ", ".join(f"`{name}` {_SPARK_TYPES[role]}" for name, role in columns)
    return spark.range(LARGE_ANSWERS).mapInArrow(generate, schema)


def _row_counts(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        yield pa.RecordBatch.from_pydict({"rows": pa.array([batch.num_rows])})


def main() -> None:
    """Warm the server under MCQ_HOME.

    Raises:
        McqError: there is none, or it does not answer.

    """
    variables = read_variables()
    settings = cluster_settings(variables.MCQ_SPARK_CLUSTER, variables)
    endpoint = local_endpoint(variables.home)
    if endpoint is None:
        raise McqError(f"no Spark server runs for {variables.home}")
    warm_up(connect(endpoint, of_session(session_config(settings, 0))), settings)


if __name__ == "__main__":
    try:
        main()
    except (McqError, PySparkException) as error:
        sys.exit(f"the Spark server was not warmed: {first_line(error)}")
