"""`test_summary_fact` as a function of the base tables (docs/spec.md §2)."""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from mcq_analytics.model.facts import ACTIVE_HOURS, TEST_SUMMARY
from mcq_analytics.transforms.valid_answers import (
    question_outcomes,
    seconds_between,
    valid_answers,
)


def test_summary_fact(answers: DataFrame, questions: DataFrame, sessions: DataFrame) -> DataFrame:
    """Return one row per student and test with a valid answer.

    `answers` may hold rows with a null student: one per question of a touched test. They only make
    `total_questions` right without reading all students. Columns: those of the fact,
    `accuracy_percent` in percent, `time_spent` in seconds, and `active_hours`.
    """
    valid = valid_answers(answers, sessions)
    totals = valid.groupBy("test_id").agg(F.countDistinct("question_id").alias("total_questions"))
    own = valid.where(F.col("student_id").isNotNull())
    outcomes = question_outcomes(own, questions)
    return (
        outcomes.groupBy("student_id", "test_id")
        .agg(
            F.count(F.lit(1)).alias("questions_attempted"),
            F.count_if("is_correct").alias("correct_answers"),
            F.min("first_answer_time").alias("first_answer_time"),
            F.max("last_answer_time").alias("last_answer_time"),
            F.array_sort(F.array_distinct(F.flatten(F.collect_list(ACTIVE_HOURS)))).alias(
                ACTIVE_HOURS
            ),
        )
        .join(totals, "test_id")
        .withColumn(
            "accuracy_percent",
            F.lit(100.0) * F.col("correct_answers") / F.col("questions_attempted"),
        )
        .withColumn(
            "time_spent", seconds_between(F.col("first_answer_time"), F.col("last_answer_time"))
        )
        .select(*TEST_SUMMARY.key, *TEST_SUMMARY.column_names, ACTIVE_HOURS)
    )
