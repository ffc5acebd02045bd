"""What a student's test adds to the funnel, with results worked out by hand."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from mcq_analytics_tests.small_tables import OF_SUBMISSIONS, Row, Tables, computed, rows


@pytest.fixture(scope="module")
def tables(spark: SparkSession) -> Tables:
    return Tables(spark)


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spark returns times in the zone of the process."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


def funnel_rows(
    tables: Tables, answers: Sequence[Row], submissions: Sequence[Row], **base: Sequence[Row]
) -> list[Row]:
    """Return what the students' tests add up to by test, and the mean of their timed seconds."""
    frame = computed(tables, answers, submissions, **base).groupBy("test_id")
    sums = frame.agg(*(F.sum(name).alias(name) for name in OF_SUBMISSIONS))
    return [
        (
            row.test_id,
            row.submissions,
            row.completed_submissions,
            row.timed_submissions,
            float(row.timed_microseconds / row.timed_submissions / 1_000_000)
            if row.timed_submissions
            else None,
        )
        for row in sums.where("submissions IS NOT NULL").sort("test_id").collect()
    ]


def test_only_completed_in_any_letter_case_counts_as_completed(tables: Tables) -> None:
    statuses = ["completed", "COMPLETED", "Completed", "timeout", None, "", "complete"]
    found = funnel_rows(
        tables, [], [(student, 5, 9, status) for student, status in enumerate(statuses)]
    )
    assert found == [(5, 7, 3, 0, None)]


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
    assert found == [(5, 2, 2, 2, (90 + 100) / 2)]


def test_two_submissions_at_the_same_moment_have_the_same_start(tables: Tables) -> None:
    found = funnel_rows(
        tables,
        [(1, 7, 3, 5, 1, "A", 0)],
        [(7, 5, 40, "completed"), (7, 5, 40, "timeout")],
    )
    assert found == [(5, 2, 1, 2, 40.0)]


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
    assert found == [(5, 4, 4, 1, 40.0)]


def test_the_mean_of_very_long_sittings_does_not_overflow(tables: Tables) -> None:
    seconds = 5_000_000_000.0  # 158 years, as a wrong clock gives
    students = range(4)
    found = funnel_rows(
        tables,
        [(n, n, 3, 5, 1, "A", -seconds / 2) for n in students],
        [(n, 5, seconds / 2, "completed") for n in students],
    )
    assert found[0][4] == seconds


def test_the_sum_of_many_long_sittings_of_one_student_is_exact(tables: Tables) -> None:
    seconds, count = 5_000_000_000, 4_000
    frame = computed(
        tables,
        [(1, 7, 3, 5, 1, "A", -seconds / 2)],
        [(7, 5, seconds / 2, "completed")] * count,
    )
    assert rows(frame, "timed_submissions", "timed_microseconds") == [
        (count, seconds * count * 1_000_000)
    ]


def test_sittings_are_told_apart_by_the_moment_of_submission(tables: Tables) -> None:
    # An answer at the moment of a submission belongs to it; the second sitting has no answer.
    frame = computed(
        tables,
        [(1, 7, 3, 5, 1, "A", 10), (2, 7, 3, 5, 1, "A", 30), (3, 8, 3, 5, 1, "A", 9)],
        [(7, 5, 10, None), (7, 5, 20, "completed"), (7, 5, 40, "completed")],
    ).where("student_id = 7")
    assert rows(frame, *OF_SUBMISSIONS) == [(3, 2, 2, (0 + 10) * 1_000_000)]
