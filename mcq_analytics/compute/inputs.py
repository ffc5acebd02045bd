"""The inputs of an attempt as DataFrames: the base rows of the keys in its staging tables."""

from __future__ import annotations

from dataclasses import dataclass

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import StructField, StructType

from mcq_analytics.compute.selections import TEST_QUESTIONS, Selections
from mcq_analytics.compute.staging import TOUCHED, Staging
from mcq_analytics.model.facts import TEST_SUMMARY
from mcq_analytics.spark.session import QUICK_RECORDS
from mcq_analytics.spark.source import SLICE, SnapshotRead, spark_id, spark_schema

KEYS_PER_SPLIT = 100_000
"""Touched keys whose rows one task reads."""


@dataclass(frozen=True)
class Inputs:
    """Makes the DataFrames of one attempt; nothing is read before Spark computes them.

    They name staging tables and no snapshot, so they stay right when the attempt is retried: Spark
    then reads them anew, in the new snapshot. `touched` is the number of touched keys, and
    `record_count` about how many base rows the window has.
    """

    url: str
    selections: Selections
    staging: Staging
    touched: int
    record_count: int

    def frame(self, spark: SparkSession, table: str) -> DataFrame:
        """Return the rows of a base table that belong to the touched keys (see `Attempt.read`).

        For `test_summary_fact`, `answers` also holds a row with a null student per question of the
        touched tests, so that `total_questions` is right without reading all students.
        """
        base = self.selections.base
        rows = self._load(spark, table, TOUCHED, spark_schema(base, table))
        if table == "answers" and self.selections.fact == TEST_SUMMARY:
            schema = StructType(
                [
                    StructField(name, spark_id(base.id_type("answers", name)))
                    for name in ("test_id", "question_id")
                ]
            )
            questions = self._load(spark, TEST_QUESTIONS, TEST_QUESTIONS, schema)
            rows = rows.unionByName(questions, allowMissingColumns=True)
        if self._splits(TOUCHED) == 1 and self.record_count <= QUICK_RECORDS:
            # Spark joins and groups a single partition as it is, without a shuffle.
            rows = rows.coalesce(1)
        return rows

    def _load(self, spark: SparkSession, name: str, part: str, schema: StructType) -> DataFrame:
        return SnapshotRead(
            url=self.url,
            input_name=name,
            extent_sql=self.staging.extent_sql(part),
            keys_sql=f"SELECT {self.selections.key_columns(name)} FROM {self.staging.quoted(part)}",
            rows_sql=self.selections.read(name, SLICE),
            count_sql=self.staging.count_sql,
            splits=self._splits(part),
            schema=schema,
        ).load(spark)

    def _splits(self, part: str) -> int:
        return max(1, min(self.staging.blocks(part), -(-self.touched // KEYS_PER_SPLIT)))
