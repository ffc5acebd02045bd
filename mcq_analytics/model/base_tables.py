"""The four base tables as pure data: names, columns, meanings, and the indexes that runs need.

The testing platform owns them (docs/spec.md §1). `postgres.inspection` reads what a server really
has.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum


class Role(Enum):
    """The kind of a base column: an opaque id, a time, or a text."""

    ID = "id"
    TIME = "time"
    TEXT = "text"


BASE_COLUMNS: Mapping[str, Mapping[str, Role]] = {
    "answers": {
        "answer_id": Role.ID,
        "student_id": Role.ID,
        "question_id": Role.ID,
        "test_id": Role.ID,
        "session_id": Role.ID,
        "submitted_option": Role.TEXT,
        "timestamp": Role.TIME,
    },
    "questions": {"question_id": Role.ID, "correct_option": Role.TEXT},
    "sessions": {"session_id": Role.ID, "expiry_time": Role.TIME},
    "submissions": {
        "student_id": Role.ID,
        "test_id": Role.ID,
        "submit_time": Role.TIME,
        "completion_status": Role.TEXT,
    },
}

TABLE_MEANINGS: Mapping[str, str] = {
    "answers": "Every answer that a student gave, late, corrected and cleared ones included.",
    "questions": "The answer key.",
    "sessions": "Sessions and when they expire.",
    "submissions": "Every submission of a test, retakes included.",
}

COLUMN_MEANINGS: Mapping[str, Mapping[str, str]] = {
    "answers": {
        "answer_id": "The answer; orders answers with the same timestamp",
        "student_id": "Who answered",
        "question_id": "Which question",
        "test_id": "In which test",
        "session_id": "The session; it may have no row in sessions",
        "submitted_option": "The choice; null if the student cleared it",
        "timestamp": "When, UTC",
    },
    "questions": {
        "question_id": "The question",
        "correct_option": "The answer key; null if there is none",
    },
    "sessions": {
        "session_id": "The session",
        "expiry_time": "Answers after it do not count; null means never",
    },
    "submissions": {
        "student_id": "Who submitted",
        "test_id": "Which test; a student may submit the same one many times",
        "submit_time": "When, UTC",
        "completion_status": "completed, in any letter case, or anything else",
    },
}

WANTED_INDEXES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "answers": (("timestamp",), ("student_id", "test_id")),
    "questions": (("question_id",),),
    "sessions": (("session_id",),),
    "submissions": (("submit_time",), ("student_id", "test_id")),
}
"""Columns by which runs look rows up. With indexes that start with them, in any order, the cost of
an hour does not grow with the tables."""

MADE_HERE = "Made by mcq-analytics init-db --base-tables"
"""Comment on base tables that we created ourselves: we never alter any others."""


def index_name(table: str, columns: tuple[str, ...]) -> str:
    """Return the name that we give an index.

    >>> index_name("answers", ("test_id", "question_id"))
    'answers_test_id_question_id_idx'
    """
    return f"{table}_{'_'.join(columns)}_idx"
