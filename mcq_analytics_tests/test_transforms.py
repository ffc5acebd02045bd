"""Each transform on small tables, with results worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession

from mcq_analytics.transforms import funnel, interactions, summary, valid_answers

NINE = datetime(2024, 3, 1, 9, 0, tzinfo=timezone.utc)
Row = tuple[Any, ...]


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


@pytest.fixture(scope="module")
def tables(spark: SparkSession) -> Tables:
    return Tables(spark)


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


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spark returns times in the zone of the process."""
    import time  # noqa: PLC0415

    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


def interaction_rows(tables: Tables, answers: Sequence[Row], **base: Sequence[Row]) -> list[Row]:
    frame = interactions.question_interaction_fact(
        tables.answers(*answers),
        tables.questions(*base.get("questions", ())),
        tables.sessions(*base.get("sessions", ())),
    )
    return rows(
        frame,
        "student_id",
        "test_id",
        "question_id",
        "first_answer_time",
        "last_answer_time",
        "answer_count",
        "final_answer_option",
        "is_correct",
        "revisited",
        "time_spent",
    )


def test_a_question_answered_twice_keeps_its_first_time_and_its_last_option(tables: Tables) -> None:
    assert interaction_rows(
        tables,
        [(1, 7, 3, 5, 1, "A", 0), (2, 7, 3, 5, 1, "B", 90.25)],
        questions=[(3, "B")],
    ) == [(7, 5, 3, 0.0, 90.25, 2, "B", True, True, 90.25)]


def test_the_same_question_in_two_tests_makes_two_rows(tables: Tables) -> None:
    found = interaction_rows(tables, [(1, 7, 3, 5, 1, "A", 0), (2, 7, 3, 6, 1, "A", 1)])
    assert [row[:3] for row in found] == [(7, 5, 3), (7, 6, 3)]


def test_the_greater_id_decides_between_answers_at_the_same_moment(tables: Tables) -> None:
    [row] = interaction_rows(
        tables,
        [(10, 7, 3, 5, 1, "B", 5), (9, 7, 3, 5, 1, "A", 5)],
        questions=[(3, "B")],
    )
    assert row[5:] == (2, "B", True, True, 0.0)


def test_a_cleared_option_is_wrong_and_stays_null(tables: Tables) -> None:
    [row] = interaction_rows(
        tables,
        [(1, 7, 3, 5, 1, "B", 0), (2, 7, 3, 5, 1, None, 1)],
        questions=[(3, "B")],
    )
    assert row[6:8] == (None, False)


@pytest.mark.parametrize("questions", [[], [(3, None)], [(4, "A")]])
def test_without_an_answer_key_nobody_is_right_or_wrong(
    tables: Tables, questions: list[Row]
) -> None:
    [row] = interaction_rows(tables, [(1, 7, 3, 5, 1, "A", 0)], questions=questions)
    assert row[7] is None


def test_an_answer_counts_until_the_very_moment_of_expiry(tables: Tables) -> None:
    found = interaction_rows(
        tables,
        [
            (1, 7, 3, 5, 1, "A", 60),
            (2, 7, 4, 5, 1, "A", 60.000001),
            (3, 7, 5, 5, 2, "A", 99),
            (4, 7, 6, 5, 9, "A", 99),
            (5, 7, 8, 5, None, "A", 99),
        ],
        sessions=[(1, 60), (2, None)],
    )
    assert [row[2] for row in found] == [3, 5, 6, 8]


def test_a_session_that_comes_from_two_splits_counts_its_answers_once(tables: Tables) -> None:
    [row] = interaction_rows(tables, [(1, 7, 3, 5, 1, "A", 0)], sessions=[(1, 60), (1, 60)])
    assert row[5] == 1


def test_active_hours_count_from_1970_without_duplicates(tables: Tables) -> None:
    frame = interactions.question_interaction_fact(
        tables.answers(
            (1, 7, 3, 5, 1, "A", 0), (2, 7, 3, 5, 1, "A", 3599.9), (3, 7, 3, 5, 1, "A", 7200)
        ),
        tables.questions(),
        tables.sessions(),
    )
    nine = int(NINE.timestamp()) // 3600
    assert [list(row.active_hours) for row in frame.collect()] == [[nine, nine + 2]]


def summary_rows(tables: Tables, answers: Sequence[Row], **base: Sequence[Row]) -> list[Row]:
    frame = summary.test_summary_fact(
        tables.answers(*answers),
        tables.questions(*base.get("questions", ())),
        tables.sessions(*base.get("sessions", ())),
    )
    return rows(
        frame,
        "student_id",
        "test_id",
        "total_questions",
        "questions_attempted",
        "correct_answers",
        "accuracy_percent",
        "time_spent",
    )


def test_the_total_counts_questions_that_any_student_validly_answered(tables: Tables) -> None:
    assert summary_rows(
        tables,
        [
            (1, 7, 3, 5, 1, "A", 0),
            (2, 7, 4, 5, 1, "B", 30),
            (3, 8, 6, 5, 2, "A", 10),
            (4, 8, 9, 5, 3, "A", 10),  # after its session's expiry
        ],
        questions=[(3, "A"), (4, "A")],
        sessions=[(3, 5)],
    ) == [(7, 5, 3, 2, 1, 50.0, 30.0), (8, 5, 3, 1, 0, 0.0, 0.0)]


def test_an_answer_without_a_student_counts_for_the_total_only(tables: Tables) -> None:
    found = summary_rows(tables, [(1, 7, 3, 5, 1, "A", 0), (None, None, 4, 5, None, None, 50)])
    assert found == [(7, 5, 2, 1, 0, 0.0, 0.0)]


def funnel_rows(
    tables: Tables, answers: Sequence[Row], submissions: Sequence[Row], **base: Sequence[Row]
) -> list[Row]:
    frame = funnel.test_funnel_fact(
        tables.answers(*answers),
        tables.sessions(*base.get("sessions", ())),
        tables.submissions(*submissions),
    )
    return rows(
        frame,
        "test_id",
        "total_submissions",
        "completed_submissions",
        "incomplete_submissions",
        "completion_rate",
        "avg_submit_time",
    )


def test_only_completed_in_any_letter_case_counts_as_completed(tables: Tables) -> None:
    statuses = ["completed", "COMPLETED", "Completed", "timeout", None, "", "complete"]
    found = funnel_rows(
        tables, [], [(student, 5, 9, status) for student, status in enumerate(statuses)]
    )
    assert found == [(5, 7, 3, 4, 100.0 * 3 / 7, None)]


def test_a_submission_is_timed_from_the_first_answer_after_the_previous_one(tables: Tables) -> None:
    # The first is timed from 10 to 100, the second from 150 to 250; 300 belongs to neither.
    found = funnel_rows(
        tables,
        [
            (1, 7, 3, 5, 1, "A", 10),
            (2, 7, 4, 5, 1, "A", 100),
            (3, 7, 3, 5, 1, "A", 150),
            (4, 7, 3, 5, 1, "A", 300),
        ],
        [(7, 5, 100, "completed"), (7, 5, 250, "completed")],
    )
    assert found[0][5] == (90 + 100) / 2


def test_two_submissions_at_the_same_moment_have_the_same_start(tables: Tables) -> None:
    found = funnel_rows(
        tables,
        [(1, 7, 3, 5, 1, "A", 0)],
        [(7, 5, 40, "completed"), (7, 5, 40, "timeout")],
    )
    assert found == [(5, 2, 1, 1, 50.0, 40.0)]


def test_submissions_without_an_answer_are_counted_but_not_timed(tables: Tables) -> None:
    found = funnel_rows(
        tables,
        [(1, 7, 3, 5, 1, "A", 0), (2, 8, 3, 5, 2, "A", 0), (3, 9, 3, 6, 1, "A", 0)],
        [
            (7, 5, 40, "completed"),
            (7, 5, 60, "completed"),  # nothing since the submission before
            (8, 5, 50, "completed"),  # its answer came after expiry
            (9, 5, 50, "completed"),  # answered another test
        ],
        sessions=[(2, -1)],
    )
    assert found == [(5, 4, 4, 0, 100.0, 40.0)]


def test_the_mean_of_very_long_sittings_does_not_overflow(tables: Tables) -> None:
    seconds = 5_000_000_000.0  # 158 years, as a wrong clock gives
    students = range(4)
    found = funnel_rows(
        tables,
        [(n, n, 3, 5, 1, "A", -seconds / 2) for n in students],
        [(n, 5, seconds / 2, "completed") for n in students],
    )
    assert found[0][5] == seconds


def test_an_option_is_right_or_wrong_whenever_there_is_a_key(tables: Tables) -> None:
    from pyspark.sql import functions as F  # noqa: PLC0415

    frame = tables.questions((1, "A")).select(
        valid_answers.is_correct(F.lit("A"), F.col("correct_option")).alias("same"),
        valid_answers.is_correct(F.lit("a"), F.col("correct_option")).alias("other"),
        valid_answers.is_correct(F.lit(None).cast("string"), F.col("correct_option")).alias("none"),
        valid_answers.is_correct(F.lit("A"), F.lit(None).cast("string")).alias("no_key"),
    )
    assert tuple(frame.collect()[0]) == (True, False, False, None)
