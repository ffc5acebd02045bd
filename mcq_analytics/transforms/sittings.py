"""How students submitted: what a student's test adds to `test_funnel_fact`."""

from __future__ import annotations

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from mcq_analytics.transforms.valid_answers import hours_of

_KEY = ("student_id", "test_id")


def submissions_of_tests(valid: DataFrame, submissions: DataFrame) -> DataFrame:
    """Return one row per student's test with a submission.

    Columns: `student_id`, `test_id`; `submissions`, those of them that are `completed_submissions`
    and `timed_submissions`, that is with a valid answer in their sitting; `timed_microseconds`,
    the sum over the timed ones from the first valid answer to the submission; `submit_hours`.
    """
    # A decimal, because the sum over many long sittings overflows a bigint.
    took = (F.unix_micros("submit_time") - F.unix_micros("start_time")) * F.col("submissions").cast(
        "decimal(18,0)"
    )
    return (
        sittings(valid, submissions)
        .groupBy(*_KEY)
        .agg(
            F.sum("submissions").alias("submissions"),
            F.sum("completed_submissions").alias("completed_submissions"),
            F.sum(F.when(F.col("start_time").isNotNull(), F.col("submissions")).otherwise(0)).alias(
                "timed_submissions"
            ),
            F.coalesce(F.sum(took.cast("decimal(38,0)")), F.lit(0).cast("decimal(38,0)")).alias(
                "timed_microseconds"
            ),
            hours_of(F.col("submit_time")).alias("submit_hours"),
        )
    )


def sittings(valid: DataFrame, submissions: DataFrame) -> DataFrame:
    """Return one row per student, test and moment of submission.

    A sitting has the student's valid answers in the test after the previous submission of it (the
    latest with a strictly earlier `submit_time`) and not after this one. Columns: `student_id`,
    `test_id`, `submit_time`, `start_time` (of the first answer, null if there is none),
    `submissions` and `completed_submissions` at that moment.
    """
    completed = F.lower("completion_status") == "completed"
    moments = submissions.groupBy(*_KEY, F.col("submit_time").alias("moment")).agg(
        F.count(F.lit(1)).alias("submissions"),
        F.count_if(completed).alias("completed_submissions"),
    )
    # Answers and submissions in one order, an answer before a submission at the same moment: the
    # number of submissions before a row is the number of its sitting. Joining answers to
    # submissions by time instead would compare each with each.
    events = valid.select(*_KEY, F.col("timestamp").alias("moment")).unionByName(
        moments, allowMissingColumns=True
    )
    earlier = (
        Window.partitionBy(*_KEY)
        .orderBy("moment", F.col("submissions").isNotNull())
        .rowsBetween(Window.unboundedPreceding, -1)
    )
    is_submission = F.col("submissions").isNotNull()
    return (
        events.withColumn("sitting", F.count("submissions").over(earlier))
        .groupBy(*_KEY, "sitting")
        .agg(
            F.max(F.when(is_submission, F.col("moment"))).alias("submit_time"),
            F.min(F.when(~is_submission, F.col("moment"))).alias("start_time"),
            F.max("submissions").alias("submissions"),
            F.max("completed_submissions").alias("completed_submissions"),
        )
        # After the last submission, a sitting has answers only.
        .where(F.col("submissions").isNotNull())
    )
