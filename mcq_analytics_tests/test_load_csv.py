"""`load-csv`: good files arrive whole; a bad row stops it with file, line and reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mcq_analytics.facts import IdType
from mcq_analytics.storage.database import Database
from mcq_analytics_tests.conftest import MakeDatabase
from mcq_analytics_tests.facts_of import execute, scalar
from mcq_analytics_tests.test_cli import call, fails

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

Write = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Write:
    """Return a function that writes the files, some of them replaced."""

    def write(**replaced: str) -> Path:
        directory = tmp_path / "csv"
        directory.mkdir(exist_ok=True)
        for name, content in FILES.items():
            text = replaced.get(name.removesuffix(".csv"), content)
            (directory / name).write_text(text, encoding="utf-8")
        return directory

    return write


def counts(database: Database) -> object:
    return scalar(
        database,
        "SELECT (SELECT count(*) FROM answers) + (SELECT count(*) FROM questions) "
        "+ (SELECT count(*) FROM sessions) + (SELECT count(*) FROM submissions)",
    )


def test_good_files_arrive_whole(database: Database, folder: Write) -> None:
    result = call("load-csv", str(folder()))
    assert result.exit_code == 0, result.output
    assert result.stdout == "loaded 1 questions, 1 sessions, 2 answers, 1 submissions\n"
    assert scalar(database, "SELECT (array_agg(a ORDER BY answer_id))::text FROM answers a") == (
        '{"(1,7,3,5,1,\\"A, or \\"\\"B\\"\\"\\",\\"2024-01-01 09:10:00.000001+00\\")",'
        '"(2,7,3,5,,,\\"2024-01-01 09:10:00+00\\")"}'
    )
    assert scalar(database, "SELECT expiry_time FROM sessions") is None


@pytest.mark.parametrize(
    ("table", "content", "line", "reason"),
    [
        ("answers", ANSWERS + "x,7,3,5,1,A,2024-01-01T09:10\n", 2, "answer_id 'x' is not a whole"),
        ("answers", ANSWERS + "1,7,3,5,1,A,tomorrow\n", 2, "timestamp 'tomorrow' is not an ISO"),
        ("answers", ANSWERS + "1,7,3,5,1,A\n", 2, "6 fields where the header has 7"),
        ("answers", ANSWERS + '1,7,3,5,1,"A\nB",2024-01-01\n2,x,3,5,1,A,\n', 4, "student_id 'x'"),
        (
            "answers",
            ANSWERS + f"{2**63},7,3,5,1,A,2024-01-01T09:10\n",
            2,
            "out of the column's range",
        ),
        ("answers", ANSWERS + "1,7,3,5,1,A,\n2,7,3,5,1,A,\n1,7,3,5,1,A,\n", 4, "duplicate key"),
        ("questions", "question_id\n3\n", 1, "the header has no correct_option"),
        ("sessions", "session_id,expiry_time\n,2024-01-01\n", 2, "null value in column"),
        ("submissions", "", 1, "the header has no student_id"),
    ],
)
def test_a_bad_row_stops_it_and_nothing_is_loaded(
    database: Database, folder: Write, table: str, content: str, line: int, reason: str
) -> None:
    result = call("load-csv", str(folder(**{table: content})))
    fails(result, 1, f"{table}.csv line {line}: ", reason, "nothing was loaded")
    assert counts(database) == 0


def test_a_row_that_is_there_already_is_named(database: Database, folder: Write) -> None:
    execute(database, "INSERT INTO questions VALUES (3, 'B')")
    fails(call("load-csv", str(folder())), 1, "questions.csv line 2: ", "duplicate key")
    assert counts(database) == 1


@pytest.mark.parametrize("id_type", [IdType.TEXT, IdType.UUID], ids=lambda kind: kind.value)
def test_ids_are_of_the_type_that_the_table_has(
    make_database: MakeDatabase, folder: Write, id_type: IdType
) -> None:
    database = make_database(id_type)
    result = call("load-csv", str(folder()))
    if id_type is IdType.UUID:
        fails(result, 1, "is not a uuid", "csv line 2")
        assert counts(database) == 0
    else:
        assert result.exit_code == 0, result.output
        assert scalar(database, "SELECT max(student_id) FROM answers") == "7"


def test_a_missing_folder_or_file_is_a_usage_error(
    database: Database, folder: Write, tmp_path: Path
) -> None:
    fails(call("load-csv", str(tmp_path / "nowhere")), 2, "nowhere is not a folder")
    directory = folder()
    (directory / "sessions.csv").unlink()
    fails(call("load-csv", str(directory)), 2, "has no sessions.csv")


def test_a_file_that_is_no_text_is_refused(database: Database, folder: Write) -> None:
    directory = folder()
    (directory / "answers.csv").write_bytes(ANSWERS.encode() + b"\xff\xfe\n")
    fails(call("load-csv", str(directory)), 1, "answers.csv", "nothing was loaded")
    assert counts(database) == 0
