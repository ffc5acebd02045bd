"""All three facts at the grain of a run's work: one row per student's test (docs/spec.md §3)."""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from mcq_analytics.transforms.outcomes import test_outcomes
from mcq_analytics.transforms.sittings import submissions_of_tests
from mcq_analytics.transforms.valid_answers import valid_answers


def student_tests(
    answers: DataFrame, questions: DataFrame, sessions: DataFrame, submissions: DataFrame
) -> DataFrame:
    """Return one row per student's test with a valid answer or a submission.

    The three facts in one row, so that one query computes them all from one set of valid answers.
    Columns: `student_id`, `test_id`; `interactions`, an array with the student's rows of
    `question_interaction_fact`; `questions_attempted`, `correct_answers`, `accuracy_percent` and
    `time_spent` (seconds) of `test_summary_fact`; `submissions`, `completed_submissions`,
    `timed_submissions` and `timed_microseconds`, which it adds to `test_funnel_fact`; and
    `active_hours`, the hours since 1970 in which it has valid answers or submissions. Columns are
    null if the student gave no valid answer, or made no submission.
    """
    valid = valid_answers(answers, sessions)
    none = F.array().cast("array<int>")
    return (
        test_outcomes(valid, questions)
        .join(submissions_of_tests(valid, submissions), ["student_id", "test_id"], "full")
        .withColumn(
            "active_hours",
            F.array_union(
                F.coalesce("answer_hours", none),
                F.coalesce("submit_hours", none),
            ),
        )
        .drop("answer_hours", "submit_hours")
    )
