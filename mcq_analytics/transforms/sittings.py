"""How students submitted: what a student's test adds to `test_funnel_fact`."""

from __future__ import annotations

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F


def submissions_of_tests(submissions: DataFrame) -> DataFrame:
    """Return one row per student's test with a submission.

    Columns: `student_id`, `test_id`, and `handed_in`, an array of its submissions, each with
    `moment` and `is_completed`.
    """
    completed = F.coalesce(F.lower("completion_status") == "completed", F.lit(False))
    each = F.struct(F.col("submit_time").alias("moment"), completed.alias("is_completed"))
    return submissions.groupBy("student_id", "test_id").agg(F.collect_list(each).alias("handed_in"))


def sums_of_sittings(answer_times: Column, handed_in: Column) -> Column:
    """Return what a student's test adds to the funnel, from its valid answers and submissions.

    A sitting has the valid answers after the previous submission (the latest with a strictly
    earlier `submit_time`) and not after this one. The fields are `submissions`, those of them that
    are `completed_submissions` and `timed_submissions`, that is with an answer in their sitting,
    and `timed_microseconds`, the sum over the timed ones from the first answer to the submission.
    """
    # Answers and submissions are walked through in one order, an answer before a submission at the
    # same moment. Joining them by time would compare each answer with each submission.
    events = F.array_sort(
        F.concat(
            F.transform(answer_times, lambda moment: _event(moment, F.lit(False), F.lit(False))),
            F.transform(handed_in, lambda one: _event(one.moment, F.lit(True), one.is_completed)),
        )
    )
    return F.aggregate(events, _nothing(), _with_event, _sums)


def _event(moment: Column, is_submission: Column, is_completed: Column) -> Column:
    return F.struct(
        moment.alias("moment"),
        is_submission.alias("is_submission"),
        is_completed.alias("is_completed"),
    )


def _nothing() -> Column:
    """Return the sums before the first event.

    `answered` is the first answer since the last submission, which was at `submitted` and whose
    sitting had its first answer at `started`.
    """
    return F.struct(
        F.lit(0).cast("bigint").alias("submissions"),
        F.lit(0).cast("bigint").alias("completed"),
        F.lit(0).cast("bigint").alias("timed"),
        # A decimal, because the sum over many long sittings overflows a bigint.
        F.lit(0).cast("decimal(38,0)").alias("microseconds"),
        _no_moment().alias("answered"),
        _no_moment().alias("submitted"),
        _no_moment().alias("started"),
    )


def _no_moment() -> Column:
    return F.lit(None).cast("timestamp")


def _with_event(sums: Column, event: Column) -> Column:
    """Return the sums after one more event."""
    # Submissions at the same moment have the same sitting.
    started = F.when(event.moment == sums.submitted, sums.started).otherwise(sums.answered)
    took = F.unix_micros(event.moment) - F.unix_micros(started)
    submitted = F.struct(
        (sums.submissions + 1).alias("submissions"),
        (sums.completed + event.is_completed.cast("bigint")).alias("completed"),
        (sums.timed + started.isNotNull().cast("bigint")).alias("timed"),
        (sums.microseconds + F.coalesce(took, F.lit(0)).cast("decimal(38,0)"))
        .cast("decimal(38,0)")
        .alias("microseconds"),
        _no_moment().alias("answered"),
        event.moment.alias("submitted"),
        started.alias("started"),
    )
    answered = F.struct(
        *(sums[name].alias(name) for name in ("submissions", "completed", "timed", "microseconds")),
        F.coalesce(sums.answered, event.moment).alias("answered"),
        sums.submitted.alias("submitted"),
        sums.started.alias("started"),
    )
    return F.when(event.is_submission, submitted).otherwise(answered)


def _sums(sums: Column) -> Column:
    return F.struct(
        sums.submissions.alias("submissions"),
        sums.completed.alias("completed_submissions"),
        sums.timed.alias("timed_submissions"),
        sums.microseconds.alias("timed_microseconds"),
    )
