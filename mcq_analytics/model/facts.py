"""The three facts: names, keys, columns with their meanings, and conditions on every row.

They are defined in docs/spec.md §2. `transforms` computes them; `postgres` stores them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class IdType(Enum):
    """The id types that base tables may have. Fact keys take the types of the base tables."""

    INTEGER = "integer"
    BIGINT = "bigint"
    TEXT = "text"
    UUID = "uuid"


class ColumnType(Enum):
    """Type of a fact column other than an id."""

    TIMESTAMP = "timestamptz"
    COUNT = "bigint"
    SUM = "numeric"
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
class Condition:
    """What every row of a fact satisfies, in SQL: the constraint `<fact>_<name>_check`."""

    name: str
    sql: str


@dataclass(frozen=True)
class Fact:
    """A fact table: `key` are its id columns, `reads` the base tables that it is computed from.

    The key takes the id types of the base table `key_table`. `conditions` are CHECK constraints of
    the table. `technical` are columns beyond the definition, beside `updated_at`.
    """

    name: str
    meaning: str
    key: tuple[str, ...]
    key_table: str
    columns: tuple[FactColumn, ...]
    reads: tuple[str, ...]
    conditions: tuple[Condition, ...]
    technical: tuple[FactColumn, ...] = ()

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names of the columns after the key, without technical ones."""
        return tuple(column.name for column in self.columns)


# NaN is greater than infinity in PostgreSQL: an upper bound keeps out both.
_SECONDS = "{0} >= 0 AND {0} < 'infinity'"
_PERCENT = "{0} >= 0 AND {0} <= 100"

KEY_MEANINGS = {
    "student_id": "The student; the type is that of the base tables",
    "test_id": "The test; the type is that of the base tables",
    "question_id": "The question; the type is that of the base tables",
}

QUESTION_INTERACTION = Fact(
    name="question_interaction_fact",
    meaning="How a student answered a question of a test: one row per student, test and "
    "question with a valid answer",
    key=("student_id", "test_id", "question_id"),
    key_table="answers",
    reads=("answers", "questions", "sessions"),
    columns=(
        FactColumn("first_answer_time", ColumnType.TIMESTAMP, "Earliest valid answer, UTC"),
        FactColumn("last_answer_time", ColumnType.TIMESTAMP, "Latest valid answer, UTC"),
        FactColumn("answer_count", ColumnType.COUNT, "Number of valid answers"),
        FactColumn(
            "final_answer_option",
            ColumnType.TEXT,
            "Option of the latest answer, by timestamp and answer_id; null if it was cleared",
            nullable=True,
        ),
        FactColumn(
            "is_correct",
            ColumnType.BOOLEAN,
            "Whether the final option is the correct one; a cleared option is wrong; null if the "
            "question has no answer key",
            nullable=True,
        ),
        FactColumn("revisited", ColumnType.BOOLEAN, "Whether there are several valid answers"),
        FactColumn("time_spent", ColumnType.FLOAT, "Seconds from the first to the last answer"),
    ),
    conditions=(
        Condition("answer_count", "answer_count > 0"),
        Condition("revisited", "revisited = (answer_count > 1)"),
        Condition("correct_option", "final_answer_option IS NOT NULL OR is_correct IS NOT TRUE"),
        Condition("answer_times", "first_answer_time <= last_answer_time"),
        Condition("time_spent", _SECONDS.format("time_spent")),
    ),
)

TEST_SUMMARY = Fact(
    name="test_summary_fact",
    meaning="How a student did in a test: one row per student and test with a valid answer",
    key=("student_id", "test_id"),
    key_table="answers",
    reads=("answers", "questions", "sessions"),
    columns=(
        FactColumn(
            "total_questions",
            ColumnType.COUNT,
            "Distinct questions of the test with a valid answer by any student",
        ),
        FactColumn(
            "questions_attempted",
            ColumnType.COUNT,
            "Distinct questions with a valid answer by this student",
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
    conditions=(
        Condition(
            "questions_attempted",
            "questions_attempted > 0 AND questions_attempted <= total_questions",
        ),
        Condition(
            "correct_answers", "correct_answers >= 0 AND correct_answers <= questions_attempted"
        ),
        Condition("accuracy_percent", _PERCENT.format("accuracy_percent")),
        Condition("time_spent", _SECONDS.format("time_spent")),
    ),
)

TEST_FUNNEL = Fact(
    name="test_funnel_fact",
    meaning="How a test is completed: one row per test with a submission",
    key=("test_id",),
    key_table="submissions",
    reads=("answers", "sessions", "submissions"),
    columns=(
        FactColumn("total_submissions", ColumnType.COUNT, "Submissions of the test"),
        FactColumn(
            "completed_submissions",
            ColumnType.COUNT,
            "Submissions whose completion_status is completed, in any letter case",
        ),
        FactColumn(
            "incomplete_submissions",
            ColumnType.COUNT,
            "The other submissions, those with null status included",
        ),
        FactColumn(
            "completion_rate",
            ColumnType.FLOAT,
            "Percent: 100 * completed_submissions / total_submissions",
        ),
        FactColumn(
            "avg_submit_time",
            ColumnType.FLOAT,
            "Mean seconds from the first valid answer of a sitting to its submission; submissions "
            "without such an answer are left out; null if none is left",
            nullable=True,
        ),
    ),
    conditions=(
        Condition(
            "total_submissions",
            "total_submissions > 0 AND "
            "completed_submissions + incomplete_submissions = total_submissions",
        ),
        Condition("parts", "completed_submissions >= 0 AND incomplete_submissions >= 0"),
        Condition("completion_rate", _PERCENT.format("completion_rate")),
        Condition("avg_submit_time", _SECONDS.format("avg_submit_time")),
    ),
    technical=(
        FactColumn(
            "timed_submissions",
            ColumnType.COUNT,
            "Submissions with a valid answer in their sitting, over which avg_submit_time is taken",
        ),
        FactColumn(
            "timed_microseconds",
            ColumnType.SUM,
            "Sum over these submissions, from the first valid answer of the sitting, microseconds",
        ),
    ),
)

FACTS = (QUESTION_INTERACTION, TEST_SUMMARY, TEST_FUNNEL)
FACTS_BY_NAME = {fact.name: fact for fact in FACTS}

UPDATED_AT_MEANING = "When the row last changed; an upsert without changes leaves it as it is"

STUDENT_TEST = ("student_id", "test_id")
"""The key of a student's test, the unit of a run's work (docs/spec.md §3)."""

PARTITIONED = tuple(fact.name for fact in FACTS if fact.key[: len(STUDENT_TEST)] == STUDENT_TEST)
"""The facts of students' tests, which may be partitioned by them."""

MOST_PARTITIONS = 256
"""Up to so many partitions of a fact."""

SUBMISSION_COUNTS = (
    FactColumn("submissions", ColumnType.COUNT, "Submissions of the test by this student"),
    FactColumn("completed_submissions", ColumnType.COUNT, "Those that are completed"),
    FactColumn("timed_submissions", ColumnType.COUNT, "Those with a valid answer in their sitting"),
    FactColumn(
        "timed_microseconds",
        ColumnType.SUM,
        "Sum over the timed ones, from the first valid answer of the sitting, microseconds",
    ),
)
"""What a student's test adds to the row of its test in `test_funnel_fact`, in whole numbers."""
