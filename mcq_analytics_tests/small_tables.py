"""Small base tables from tuples, and the rows that `student_tests` computes from them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from pyspark.sql import DataFrame, SparkSession

from mcq_analytics.transforms import student_tests

NINE = datetime(2024, 3, 1, 9, 0, tzinfo=timezone.utc)
Row = tuple[Any, ...]
OF_SUBMISSIONS = (
    "submissions",
    "completed_submissions",
    "timed_submissions",
    "timed_microseconds",
)


def at(seconds: float) -> datetime:
    return NINE + timedelta(seconds=seconds)


class Tables:
    """Base tables from tuples: an answer is id, student, question, test, session, option, time."""

    def __init__(self, spark: SparkSession) -> None:
        self._spark = spark

    def answers(self, *rows: Row) -> DataFrame:
        return self._spark.createDataFrame(
            [(*row[:6], at(row[6])) for row in rows],
            "answer_id bigint, student_id bigint, question_id bigint, test_id bigint, "
            "session_id bigint, submitted_option string, timestamp timestamp",
        )

    def questions(self, *rows: Row) -> DataFrame:
        return self._spark.createDataFrame(list(rows), "question_id bigint, correct_option string")

    def sessions(self, *rows: Row) -> DataFrame:
        return self._spark.createDataFrame(
            [(session, None if second is None else at(second)) for session, second in rows],
            "session_id bigint, expiry_time timestamp",
        )

    def submissions(self, *rows: Row) -> DataFrame:
        return self._spark.createDataFrame(
            [(student, test, at(second), status) for student, test, second, status in rows],
            "student_id bigint, test_id bigint, submit_time timestamp, completion_status string",
        )


def rows(frame: DataFrame, *columns: str) -> list[Row]:
    """Return the rows in order, times as seconds after nine."""
    return sorted(
        (
            tuple(
                (value.replace(tzinfo=timezone.utc) - NINE).total_seconds()
                if isinstance(value, datetime)
                else value
                for value in row
            )
            for row in frame.select(*columns).collect()
        ),
        key=repr,
    )


def computed(
    tables: Tables,
    answers: Sequence[Row],
    submissions: Sequence[Row] = (),
    *,
    questions: Sequence[Row] = (),
    sessions: Sequence[Row] = (),
) -> DataFrame:
    return student_tests.student_tests(
        tables.answers(*answers),
        tables.questions(*questions),
        tables.sessions(*sessions),
        tables.submissions(*submissions),
    )
