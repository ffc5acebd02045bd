"""The three facts: names, keys, columns and what they mean (SPEC section 2).

How they are computed is in `transforms`; how they are stored, in `storage`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class IdType(Enum):
    """The id types that base tables may have. Fact keys take the types that they do have."""

    INTEGER = "integer"
    BIGINT = "bigint"
    TEXT = "text"
    UUID = "uuid"


class ColumnType(Enum):
    """Type of a fact column that is not an id. Ids take the types of the base tables."""

    TIMESTAMP = "timestamptz"
    COUNT = "bigint"
    FLOAT = "double precision"
    TEXT = "text"
    BOOLEAN = "boolean"


@dataclass(frozen=True)
class FactColumn:
    """A column of a fact: its type, whether it may be null, and its meaning."""

    name: str
    type: ColumnType
    meaning: str
    nullable: bool = False


@dataclass(frozen=True)
class Fact:
    """A fact table: `key` are its id columns, `reads` the base tables that it is computed from.

    `key_table` is the base table whose id types the key takes. `split_key` are the columns by
    which its touched rows are read in parallel. `conditions` hold for every row: they are the CHECK
    constraints of the table, by the middle part of their names.
    """

    name: str
    meaning: str
    key: tuple[str, ...]
    key_table: str
    split_key: tuple[str, ...]
    columns: tuple[FactColumn, ...]
    reads: tuple[str, ...]
    conditions: Mapping[str, str]

    @property
    def hours_table(self) -> str:
        """Name of the table that keeps the hours in which each row has source rows."""
        return f"{self.name}_hour"

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names of the columns of SPEC that follow the key."""
        return tuple(column.name for column in self.columns)


# NaN is greater than infinity in PostgreSQL: an upper bound keeps out both.
_SECONDS = "{0} >= 0 AND {0} < 'infinity'"
_PERCENT = "{0} >= 0 AND {0} <= 100"

KEY_MEANINGS = {
    "student_id": "The student; of the type that the base tables have",
    "test_id": "The test; of the type that the base tables have",
    "question_id": "The question; of the type that the base tables have",
}

QUESTION_INTERACTION = Fact(
    name="question_interaction_fact",
    meaning="How a student dealt with a question of a test: one row per student, test and "
    "question with a valid answer",
    key=("student_id", "test_id", "question_id"),
    key_table="answers",
    split_key=("student_id", "test_id", "question_id"),
    reads=("answers", "questions", "sessions"),
    columns=(
        FactColumn("first_answer_time", ColumnType.TIMESTAMP, "Earliest valid answer, UTC"),
        FactColumn("last_answer_time", ColumnType.TIMESTAMP, "Latest valid answer, UTC"),
        FactColumn("answer_count", ColumnType.COUNT, "Number of valid answers"),
        FactColumn(
            "final_answer_option",
            ColumnType.TEXT,
            "Option of the latest answer, by timestamp and answer_id; null where it was cleared",
            nullable=True,
        ),
        FactColumn(
            "is_correct",
            ColumnType.BOOLEAN,
            "Whether the final option is the correct one; a cleared option is wrong; null where "
            "the question has no answer key",
            nullable=True,
        ),
        FactColumn("revisited", ColumnType.BOOLEAN, "Whether there is more than one valid answer"),
        FactColumn("time_spent", ColumnType.FLOAT, "Seconds from the first to the last answer"),
    ),
    conditions={
        "answer_count": "answer_count > 0",
        "revisited": "revisited = (answer_count > 1)",
        "correct_option": "final_answer_option IS NOT NULL OR is_correct IS NOT TRUE",
        "answer_times": "first_answer_time <= last_answer_time",
        "time_spent": _SECONDS.format("time_spent"),
    },
)

TEST_SUMMARY = Fact(
    name="test_summary_fact",
    meaning="How a student did in a test: one row per student and test with a valid answer",
    key=("student_id", "test_id"),
    key_table="answers",
    split_key=("student_id", "test_id"),
    reads=("answers", "questions", "sessions"),
    columns=(
        FactColumn(
            "total_questions",
            ColumnType.COUNT,
            "Distinct questions of the test that any student has validly answered",
        ),
        FactColumn(
            "questions_attempted",
            ColumnType.COUNT,
            "Distinct questions that this student has validly answered",
        ),
        FactColumn(
            "correct_answers",
            ColumnType.COUNT,
            "Questions of this student whose final answer is correct",
        ),
        FactColumn(
            "accuracy_percent",
            ColumnType.FLOAT,
            "Percent: 100 * correct_answers / questions_attempted",
        ),
        FactColumn(
            "time_spent",
            ColumnType.FLOAT,
            "Seconds from the student's first to last valid answer in the test",
        ),
    ),
    conditions={
        "questions_attempted": "questions_attempted > 0 AND questions_attempted <= total_questions",
        "correct_answers": "correct_answers >= 0 AND correct_answers <= questions_attempted",
        "accuracy_percent": _PERCENT.format("accuracy_percent"),
        "time_spent": _SECONDS.format("time_spent"),
    },
)

TEST_FUNNEL = Fact(
    name="test_funnel_fact",
    meaning="How a test is completed: one row per test with a submission",
    key=("test_id",),
    key_table="submissions",
    split_key=("test_id", "student_id"),
    reads=("answers", "sessions", "submissions"),
    columns=(
        FactColumn("total_submissions", ColumnType.COUNT, "Submissions of the test"),
        FactColumn(
            "completed_submissions",
            ColumnType.COUNT,
            "Submissions whose completion_status is completed, in any letter case",
        ),
        FactColumn(
            "incomplete_submissions", ColumnType.COUNT, "The other submissions, null status too"
        ),
        FactColumn(
            "completion_rate",
            ColumnType.FLOAT,
            "Percent: 100 * completed_submissions / total_submissions",
        ),
        FactColumn(
            "avg_submit_time",
            ColumnType.FLOAT,
            "Mean seconds of an attempt, from its first valid answer to its submission; attempts "
            "without an answer are left out; null where none is left",
            nullable=True,
        ),
    ),
    conditions={
        "total_submissions": "total_submissions > 0 AND "
        "completed_submissions + incomplete_submissions = total_submissions",
        "parts": "completed_submissions >= 0 AND incomplete_submissions >= 0",
        "completion_rate": _PERCENT.format("completion_rate"),
        "avg_submit_time": _SECONDS.format("avg_submit_time"),
    },
)

FACTS = (QUESTION_INTERACTION, TEST_SUMMARY, TEST_FUNNEL)
FACTS_BY_NAME = {fact.name: fact for fact in FACTS}

UPDATED_AT_MEANING = "When the row last changed; an upsert that changes nothing leaves it"
ACTIVE_HOURS = "active_hours"
"""Technical column of a computed fact row: the UTC hours, as whole hours since 1970, in which it
has source rows. It is stored beside the fact, so that a run of such an hour finds the row again
even after its source rows have gone."""
