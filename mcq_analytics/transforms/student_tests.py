"""All three facts at the grain of a run's work: one row per student's test (docs/spec.md §3)."""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from mcq_analytics.transforms.outcomes import test_outcomes
from mcq_analytics.transforms.sittings import submissions_of_tests, sums_of_sittings
from mcq_analytics.transforms.valid_answers import hours_of, valid_answers


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
    # Every input is used once, so that nothing is read or computed twice.
    both = test_outcomes(valid, questions).join(
        submissions_of_tests(submissions), ["student_id", "test_id"], "full"
    )
    times = F.coalesce("answer_times", F.array().cast("array<timestamp>"))
    submit_times = F.coalesce("handed_in.moment", F.array().cast("array<timestamp>"))
    return (
        both.withColumn(
            "sums",
            F.when(F.col("handed_in").isNotNull(), sums_of_sittings(times, F.col("handed_in"))),
        )
        .withColumn("active_hours", hours_of(F.concat(times, submit_times)))
        .select("*", "sums.*")
        .drop("sums", "answer_times", "handed_in")
    )
