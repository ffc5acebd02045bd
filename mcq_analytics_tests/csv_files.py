"""CSV files for the tests of `load-csv`, and the row count of what arrived."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mcq_analytics.postgres.database import Database
from mcq_analytics_tests.facts_of import scalar

ANSWERS = "answer_id,student_id,question_id,test_id,session_id,submitted_option,timestamp\n"
FILES = {
    "answers.csv": ANSWERS
    + '1,7,3,5,1,"A, or ""B""",2024-01-01T09:10:00.000001\n'
    + "2,7,3,5,,,2024-01-01T10:10+01:00\n",
    "questions.csv": "\ufeffcorrect_option,extra,question_id\nA,x,3\n",
    "sessions.csv": "session_id,expiry_time\n1,\n",
    "submissions.csv": "student_id,test_id,submit_time,completion_status\n"
    "7,5,2024-01-01T09:20Z,x\n",
}

MOMENT = "2024-01-01T09:10"
SESSIONS = "session_id,expiry_time\n"

Write = Callable[..., Path]


def csv_writer(directory: Path) -> Write:
    """Return a function that writes the files into a folder, some of them replaced.

    Bytes that are not UTF-8 are given as the surrogates from DC80 to DCFF.
    """

    def write(**replaced: str) -> Path:
        directory.mkdir(exist_ok=True)
        for name, content in FILES.items():
            text = replaced.get(name.removesuffix(".csv"), content)
            (directory / name).write_text(
                text, encoding="utf-8", errors="surrogateescape", newline=""
            )
        return directory

    return write


def headers_only(**replaced: str) -> dict[str, str]:
    """Return files without rows, except those given."""
    return {
        name.removesuffix(".csv"): content.partition("\n")[0] + "\n"
        for name, content in FILES.items()
    } | replaced


def row_count(database: Database) -> object:
    """Return the number of rows in all base tables."""
    return scalar(
        database,
        "SELECT (SELECT count(*) FROM answers) + (SELECT count(*) FROM questions) "
        "+ (SELECT count(*) FROM sessions) + (SELECT count(*) FROM submissions)",
    )
