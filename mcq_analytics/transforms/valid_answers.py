"""Which answers are valid, and expressions over times (docs/spec.md §2)."""

from __future__ import annotations

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

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


def seconds_between(first: Column, last: Column) -> Column:
    """Return the seconds from one timestamp to another, to the microsecond."""
    return (F.unix_micros(last) - F.unix_micros(first)) / F.lit(float(MICROSECONDS))


def hours_of(moments: Column) -> Column:
    """Return the distinct UTC hours of an array of timestamps, counted since 1970."""
    return F.array_distinct(
        F.transform(
            moments,
            lambda moment: F.floor(F.unix_seconds(moment) / SECONDS_PER_HOUR).cast("int"),
        )
    )
