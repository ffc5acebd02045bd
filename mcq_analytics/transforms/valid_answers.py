"""The rules that several facts share: valid answers, and the outcome per student and question."""

from __future__ import annotations

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from mcq_analytics.model.facts import ACTIVE_HOURS

MICROSECONDS = 1_000_000
SECONDS_PER_HOUR = 3600


def valid_answers(answers: DataFrame, sessions: DataFrame) -> DataFrame:
    """Return the answers whose session is missing, never expires, or had not yet expired.

    An answer at the very moment of expiry counts (docs/spec.md §2). A session with several rows
    expires at the latest of their times, or never if one of them is null (docs/spec.md §1).
    Columns: those of `answers`.
    """
    expiries = F.when(F.count(F.lit(1)) == F.count("expiry_time"), F.max("expiry_time"))
    expiry = sessions.groupBy("session_id").agg(expiries.alias("expiry_time"))
    return (
        answers.join(expiry, "session_id", "left")
        .where(F.col("expiry_time").isNull() | (F.col("timestamp") <= F.col("expiry_time")))
        .select(*answers.columns)
    )


def question_outcomes(valid: DataFrame, questions: DataFrame) -> DataFrame:
    """Return the valid answers aggregated by student, test and question.

    Columns: `student_id`, `test_id`, `question_id`, `first_answer_time`, `last_answer_time`,
    `answer_count`, `final_answer_option`, `is_correct` and `active_hours`.
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
        hours_of(F.col("timestamp")).alias(ACTIVE_HOURS),
    )
    # If a question has several keys, the greatest counts (docs/spec.md §1): Spark compares bytes.
    keys = questions.groupBy("question_id").agg(F.max("correct_option").alias("correct_option"))
    return outcomes.join(keys, "question_id", "left").withColumn(
        "is_correct", is_correct(F.col("final_answer_option"), F.col("correct_option"))
    )


def is_correct(option: Column, correct_option: Column) -> Column:
    """Return whether an option is correct: null without a key; a null option is wrong."""
    return F.when(correct_option.isNotNull(), F.coalesce(option == correct_option, F.lit(False)))


def seconds_between(first: Column, last: Column) -> Column:
    """Return the seconds from one timestamp to another, to the microsecond."""
    return (F.unix_micros(last) - F.unix_micros(first)) / F.lit(float(MICROSECONDS))


def hours_of(moment: Column) -> Column:
    """Aggregate timestamps into the array of their distinct UTC hours, counted since 1970."""
    return F.array_sort(
        F.collect_set(F.floor(F.unix_seconds(moment) / SECONDS_PER_HOUR).cast("int"))
    )
