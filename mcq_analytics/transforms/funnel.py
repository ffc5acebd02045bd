"""`test_funnel_fact` as a function of the base tables (docs/spec.md §2)."""

from __future__ import annotations

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from mcq_analytics.model.facts import ACTIVE_HOURS, TEST_FUNNEL
from mcq_analytics.transforms.valid_answers import MICROSECONDS, hours_of, valid_answers

_SUBMISSION = ("student_id", "test_id", "submit_time")


def test_funnel_fact(answers: DataFrame, sessions: DataFrame, submissions: DataFrame) -> DataFrame:
    """Return one row per test with a submission.

    Columns: those of the fact, `completion_rate` in percent, `avg_submit_time` in seconds, and
    `active_hours`.
    """
    valid = valid_answers(answers, sessions)
    timed = submissions.join(start_times(valid, submissions), list(_SUBMISSION), "left")
    completed = F.lower("completion_status") == "completed"
    microseconds = F.unix_micros("submit_time") - F.unix_micros("start_time")
    counts = timed.groupBy("test_id").agg(
        F.count(F.lit(1)).alias("total_submissions"),
        F.count_if(completed).alias("completed_submissions"),
        # A decimal, because the sum over many long sittings overflows a bigint.
        F.sum(microseconds.cast("decimal(20,0)")).cast("double").alias("microseconds"),
        F.count(microseconds).alias("timed_submissions"),
        hours_of(F.col("submit_time")).alias("submit_hours"),
    )
    answered = (
        valid.join(submissions, ["student_id", "test_id"], "left_semi")
        .groupBy("test_id")
        .agg(hours_of(F.col("timestamp")).alias("answer_hours"))
    )
    return (
        counts.join(answered, "test_id", "left")
        .withColumn(
            "incomplete_submissions", F.col("total_submissions") - F.col("completed_submissions")
        )
        .withColumn(
            "completion_rate",
            F.lit(100.0) * F.col("completed_submissions") / F.col("total_submissions"),
        )
        .withColumn(
            "avg_submit_time",
            F.when(
                F.col("timed_submissions") > 0,
                F.col("microseconds") / F.col("timed_submissions") / F.lit(float(MICROSECONDS)),
            ),
        )
        .withColumn(
            ACTIVE_HOURS,
            F.array_union("submit_hours", F.coalesce("answer_hours", F.array().cast("array<int>"))),
        )
        .select(*TEST_FUNNEL.key, *TEST_FUNNEL.column_names, ACTIVE_HOURS)
    )


def start_times(valid: DataFrame, submissions: DataFrame) -> DataFrame:
    """Return when the work for each submission began: at its first valid answer.

    A submission's answers are those of the student in the test after the previous submission of it
    (the latest with a strictly earlier `submit_time`) and not after this one. Submissions without
    a valid answer are left out. Columns: `student_id`, `test_id`, `submit_time`, `start_time`.
    """
    earlier = (
        Window.partitionBy("student_id", "test_id")
        .orderBy("submit_time")
        .rowsBetween(Window.unboundedPreceding, -1)
    )
    timed = (
        submissions.select(*_SUBMISSION)
        .distinct()
        .withColumn("previous_submit_time", F.max("submit_time").over(earlier))
    )
    return (
        timed.join(valid.select("student_id", "test_id", "timestamp"), ["student_id", "test_id"])
        .where(
            (F.col("timestamp") <= F.col("submit_time"))
            & (
                F.col("previous_submit_time").isNull()
                | (F.col("timestamp") > F.col("previous_submit_time"))
            )
        )
        .groupBy(*_SUBMISSION)
        .agg(F.min("timestamp").alias("start_time"))
    )
