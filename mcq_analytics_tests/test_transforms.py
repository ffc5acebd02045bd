"""What a student's test is in interactions and summary, with results worked out by hand."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from mcq_analytics.transforms import outcomes
from mcq_analytics_tests.small_tables import (
    NINE,
    OF_SUBMISSIONS,
    Row,
    Tables,
    computed,
    rows,
)


@pytest.fixture(scope="module")
def tables(spark: SparkSession) -> Tables:
    return Tables(spark)


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spark returns times in the zone of the process."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


OF_ANSWERS = ("questions_attempted", "correct_answers", "accuracy_percent", "time_spent")


def interaction_rows(tables: Tables, answers: Sequence[Row], **base: Sequence[Row]) -> list[Row]:
    frame = computed(tables, answers, **base)
    return rows(
        frame.selectExpr("student_id", "test_id", "inline(interactions)"),
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


def active_hours(frame: DataFrame) -> dict[tuple[int, int], list[int]]:
    """Return the active hours of each student's test, counted from nine."""
    nine = int(NINE.timestamp()) // 3600
    return {
        (row.student_id, row.test_id): sorted(hour - nine for hour in row.active_hours)
        for row in frame.collect()
    }


def test_active_hours_count_from_1970_without_duplicates(tables: Tables) -> None:
    frame = computed(
        tables,
        [(1, 7, 3, 5, 1, "A", 0), (2, 7, 3, 5, 1, "A", 3599.9), (3, 7, 4, 5, 1, "A", 7200)],
    )
    assert active_hours(frame) == {(7, 5): [0, 2]}


def test_a_students_test_is_active_in_the_hours_of_its_valid_answers_and_submissions(
    tables: Tables,
) -> None:
    frame = computed(
        tables,
        [
            (1, 7, 3, 5, 1, "A", 0),
            (2, 7, 3, 5, 2, "A", 3600),  # after its session's expiry
            (3, 8, 3, 5, 1, "A", 7200),
        ],
        [(7, 5, 40, "completed"), (7, 5, 10800, "timeout"), (9, 5, -1, None)],
        sessions=[(2, 5)],
    )
    assert active_hours(frame) == {(7, 5): [0, 3], (8, 5): [2], (9, 5): [-1]}


def summary_rows(tables: Tables, answers: Sequence[Row], **base: Sequence[Row]) -> list[Row]:
    return rows(
        computed(tables, answers, **base),
        "student_id",
        "test_id",
        "questions_attempted",
        "correct_answers",
        "accuracy_percent",
        "time_spent",
    )


def test_a_summary_counts_the_questions_of_a_student_not_their_answers(tables: Tables) -> None:
    assert summary_rows(
        tables,
        [
            (1, 7, 3, 5, 1, "A", 0),
            (2, 7, 4, 5, 1, "B", 20),
            (3, 7, 4, 5, 1, "B", 30),
            (4, 8, 6, 5, 2, "A", 10),
            (5, 8, 9, 5, 3, "A", 10),  # after its session's expiry
        ],
        questions=[(3, "A"), (4, "A")],
        sessions=[(3, 5)],
    ) == [(7, 5, 2, 1, 50.0, 30.0), (8, 5, 1, 0, 0.0, 0.0)]


def test_a_students_test_without_an_answer_or_a_submission_has_nulls_in_their_place(
    tables: Tables,
) -> None:
    frame = computed(tables, [(1, 7, 3, 5, 1, "A", 0)], [(8, 5, 9, "completed")])
    assert rows(frame, "student_id", *OF_ANSWERS, *OF_SUBMISSIONS) == [
        (7, 1, 0, 0.0, 0.0, None, None, None, None),
        (8, None, None, None, None, 1, 1, 0, 0),
    ]
    assert [row.interactions for row in frame.where("student_id = 8").collect()] == [None]


def test_an_option_is_right_or_wrong_whenever_there_is_a_key(tables: Tables) -> None:
    frame = tables.questions((1, "A")).select(
        outcomes.is_correct(F.lit("A"), F.col("correct_option")).alias("same"),
        outcomes.is_correct(F.lit("a"), F.col("correct_option")).alias("other"),
        outcomes.is_correct(F.lit(None).cast("string"), F.col("correct_option")).alias("none"),
        outcomes.is_correct(F.lit("A"), F.lit(None).cast("string")).alias("no_key"),
    )
    assert tuple(frame.collect()[0]) == (True, False, False, None)
