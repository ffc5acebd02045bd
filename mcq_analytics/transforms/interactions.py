"""`question_interaction_fact` as a function of the base tables (docs/spec.md §2)."""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from mcq_analytics.model.facts import ACTIVE_HOURS, QUESTION_INTERACTION
from mcq_analytics.transforms.valid_answers import (
    question_outcomes,
    seconds_between,
    valid_answers,
)


def question_interaction_fact(
    answers: DataFrame, questions: DataFrame, sessions: DataFrame
) -> DataFrame:
    """Return one row per student, test and question with a valid answer.

    Columns: those of the fact, `time_spent` in seconds, and `active_hours`.
    """
    outcomes = question_outcomes(valid_answers(answers, sessions), questions)
    return (
        outcomes.withColumn("revisited", F.col("answer_count") > 1)
        .withColumn(
            "time_spent", seconds_between(F.col("first_answer_time"), F.col("last_answer_time"))
        )
        .select(*QUESTION_INTERACTION.key, *QUESTION_INTERACTION.column_names, ACTIVE_HOURS)
    )
