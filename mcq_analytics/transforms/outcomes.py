"""How students answered: the rows of `question_interaction_fact`, and their sums by test."""

from __future__ import annotations

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from mcq_analytics.transforms.valid_answers import seconds_between

_INTERACTION = (
    "question_id",
    "first_answer_time",
    "last_answer_time",
    "answer_count",
    "final_answer_option",
    "is_correct",
    "revisited",
    "time_spent",
)


def test_outcomes(valid: DataFrame, questions: DataFrame) -> DataFrame:
    """Return one row per student's test with a valid answer.

    Columns: `student_id`, `test_id`; `interactions`, an array with the columns of
    `question_interaction_fact` after these ids; the columns of `test_summary_fact` that follow
    from the student's own answers; and `answer_times`, an array.
    """
    return (
        question_outcomes(valid, questions)
        .groupBy("student_id", "test_id")
        .agg(
            F.collect_list(F.struct(*_INTERACTION)).alias("interactions"),
            F.count(F.lit(1)).alias("questions_attempted"),
            F.count_if("is_correct").alias("correct_answers"),
            seconds_between(F.min("first_answer_time"), F.max("last_answer_time")).alias(
                "time_spent"
            ),
            F.flatten(F.collect_list("answer_times")).alias("answer_times"),
        )
        .withColumn(
            "accuracy_percent",
            F.lit(100.0) * F.col("correct_answers") / F.col("questions_attempted"),
        )
    )


def question_outcomes(valid: DataFrame, questions: DataFrame) -> DataFrame:
    """Return the valid answers aggregated by student, test and question.

    Columns: those of `question_interaction_fact`, and `answer_times`, an array.
    """
    # Null ids sort last, as in SQL; between two rows of one id the option decides.
    latest = F.struct(
        "timestamp", F.col("answer_id").isNull(), F.col("answer_id"), F.col("submitted_option")
    )
    outcomes = valid.groupBy("student_id", "test_id", "question_id").agg(
        F.min("timestamp").alias("first_answer_time"),
        F.max("timestamp").alias("last_answer_time"),
        F.count(F.lit(1)).alias("answer_count"),
        F.max_by("submitted_option", latest).alias("final_answer_option"),
        F.collect_list("timestamp").alias("answer_times"),
    )
    # If a question has several keys, the greatest counts (docs/spec.md §1): Spark compares bytes.
    keys = questions.groupBy("question_id").agg(F.max("correct_option").alias("correct_option"))
    return (
        outcomes.join(keys, "question_id", "left")
        .withColumn("is_correct", is_correct(F.col("final_answer_option"), F.col("correct_option")))
        .withColumn("revisited", F.col("answer_count") > 1)
        .withColumn(
            "time_spent", seconds_between(F.col("first_answer_time"), F.col("last_answer_time"))
        )
    )


def is_correct(option: Column, correct_option: Column) -> Column:
    """Return whether an option is correct: null without a key; a null option is wrong."""
    return F.when(correct_option.isNotNull(), F.coalesce(option == correct_option, F.lit(False)))
