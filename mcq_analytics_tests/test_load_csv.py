"""`load-csv`: good files arrive whole; a bad row stops it with file, line and reason."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest

from mcq_analytics.model.facts import IdType
from mcq_analytics.postgres.database import Database
from mcq_analytics_tests.commands import call, fails
from mcq_analytics_tests.conftest import MakeDatabase
from mcq_analytics_tests.csv_files import (
    ANSWERS,
    MOMENT,
    SESSIONS,
    Write,
    csv_writer,
    headers_only,
    row_count,
)
from mcq_analytics_tests.facts_of import execute, scalar


@pytest.fixture
def folder(tmp_path: Path) -> Write:
    """Return a function that writes the files."""
    return csv_writer(tmp_path / "csv")


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
        (
            "answers",
            ANSWERS + '1,7,3,5,1,"A\nB",2024-01-01T09:10\n2,x,3,5,1,A,\n',
            4,
            "student_id 'x'",
        ),
        (
            "answers",
            ANSWERS + f"{2**63},7,3,5,1,A,2024-01-01T09:10\n",
            2,
            "out of the column's range",
        ),
        ("answers", ANSWERS + "1,7,3,5,1,A,\n2,7,3,5,1,A,\n1,7,3,5,1,A,\n", 4, "duplicate key"),
        ("questions", "question_id\n3\n", 1, "the header has no correct_option"),
        ("sessions", "session_id,expiry_time\n,2024-01-01T09:10\n", 2, "null value in column"),
        ("submissions", "", 1, "the header has no student_id"),
    ],
)
def test_a_bad_row_stops_it_and_nothing_is_loaded(
    database: Database, folder: Write, table: str, content: str, line: int, reason: str
) -> None:
    result = call("load-csv", str(folder(**{table: content})))
    fails(result, 1, f"{table}.csv line {line}: ", reason, "nothing was loaded")
    assert row_count(database) == 0


def test_a_row_that_exists_already_is_named(database: Database, folder: Write) -> None:
    execute(database, "INSERT INTO questions VALUES (3, 'B')")
    fails(call("load-csv", str(folder())), 1, "questions.csv line 2: ", "duplicate key")
    assert row_count(database) == 1


@pytest.mark.parametrize("id_type", [IdType.TEXT, IdType.UUID], ids=lambda kind: kind.value)
def test_ids_are_parsed_as_the_type_of_the_table(
    make_database: MakeDatabase, folder: Write, id_type: IdType
) -> None:
    database = make_database(id_type)
    result = call("load-csv", str(folder()))
    if id_type is IdType.UUID:
        fails(result, 1, "is not a uuid", "csv line 2")
        assert row_count(database) == 0
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


def test_a_file_that_is_not_text_is_refused(database: Database, folder: Write) -> None:
    directory = folder()
    (directory / "answers.csv").write_bytes(ANSWERS.encode() + b"\xff\xfe\n")
    fails(call("load-csv", str(directory)), 1, "answers.csv", "nothing was loaded")
    assert row_count(database) == 0


@pytest.mark.parametrize(
    "value",
    [
        "20230808120000Z",
        "1706110312345",
        "1706110312",
        "2024-01-31",
        "2024-01-31T09",
        "2024-W05-3T09:00",
        "2024-031T09:00",
        "2024-01-31T24:00",
        "2024-01-31T23:59:60",
        "on 2024-01-31T09:00",
        "\u0662024-01-31T09:00",
        "infinity",
    ],
)
def test_a_time_that_is_not_a_date_and_a_time_is_refused_with_its_line_and_value(
    database: Database, folder: Write, value: str
) -> None:
    content = f"{SESSIONS}1,{MOMENT}\n2,{value}\n"
    result = call("load-csv", str(folder(sessions=content)))
    fails(result, 1, f"sessions.csv line 3: expiry_time '{value}' is not an ISO 8601 time")
    assert row_count(database) == 0


def test_times_in_every_notation_arrive_as_the_right_moment(
    database: Database, folder: Write
) -> None:
    times = {
        "2024-01-31 09:00": "09:00:00+00",
        "2024-01-31t09:00:30z": "09:00:30+00",
        '"2024-01-31T09:00:30,5+01"': "08:00:30.5+00",
        "20240131T090030.1234565Z": "09:00:30.123456+00",
        "20240131T0900-0130": "10:30:00+00",
        "2024-01-31T09:00:30.9999999+00:30": "08:30:31+00",
    }
    content = SESSIONS + "".join(f"{number},{time}\n" for number, time in enumerate(times))
    result = call("load-csv", str(folder(sessions=content)))
    assert result.exit_code == 0, result.output
    loaded = "SELECT array_agg(expiry_time::text ORDER BY session_id) FROM sessions"
    assert scalar(database, loaded) == [f"2024-01-31 {time}" for time in times.values()]


def test_an_extra_column_may_hold_anything(database: Database, folder: Write) -> None:
    junk = ("\0", "a\0b", "\udcff\udcfe", "x" * 2_000_000, '"a ""\n\0"')
    content = "note,question_id,,correct_option,\n" + "".join(
        f"{text},{number},{text},A,\n" for number, text in enumerate(junk)
    )
    result = call("load-csv", str(folder(questions=content)))
    assert result.exit_code == 0, result.output
    assert scalar(database, "SELECT count(*) FROM questions WHERE correct_option = 'A'") == 5


@pytest.mark.parametrize(
    ("table", "content", "message"),
    [
        (
            "questions",
            "question_id,correct_option\n1,\u00e4\ud7ff\U0001f600\n2,A\0\n",
            "questions.csv line 3: correct_option holds a NUL character",
        ),
        (
            "questions",
            "question_id,correct_option\n1,A\n2,caf\udce9\n",
            "questions.csv line 3: correct_option holds bytes that are not UTF-8",
        ),
        (
            "questions",
            "question_id,correct_option\n1\0,A\n",
            "questions.csv line 2: question_id holds a NUL character",
        ),
        (
            "sessions",
            SESSIONS + "1,\udcff\n",
            "sessions.csv line 2: expiry_time holds bytes that are not UTF-8",
        ),
        (
            "sessions",
            "session_id,expiry_time,a, session_id\n1,,,\n",
            "sessions.csv line 1: the header has 'session_id' more than once",
        ),
        (
            "sessions",
            "session_id,note,expiry_time,,,note\n1,,,,,\n",
            "sessions.csv line 1: the header has 'note' more than once",
        ),
        (
            "sessions",
            SESSIONS + f'1,{MOMENT}\n2,"{MOMENT}\n3,{MOMENT}\n',
            "sessions.csv line 3: unexpected end of data in the row that begins there",
        ),
        (
            "sessions",
            SESSIONS + f"{'0' * 500_000}1,\n2,\n{'0' * 500_000}x,\n",
            "sessions.csv line 4: session_id '0000",
        ),
        (
            "sessions",
            SESSIONS + f"{'1' * 10_000},\n",
            "is out of the column's range; nothing was loaded",
        ),
    ],
)
def test_bytes_that_are_not_text_and_ambiguous_rows_are_named(
    database: Database, folder: Write, table: str, content: str, message: str
) -> None:
    fails(call("load-csv", str(folder(**{table: content}))), 1, message, "nothing was loaded")
    assert row_count(database) == 0


def test_long_texts_are_loaded_whole(
    database: Database, folder: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcq_analytics.sample.csv_load.CHARACTERS_PER_BATCH", 1_000_000)
    lines = "".join(f"{number},{chr(97 + number) * 700_000}\n" for number in range(5))
    result = call("load-csv", str(folder(questions="question_id,correct_option\n" + lines)))
    assert result.exit_code == 0, result.output
    assert scalar(database, "SELECT sum(length(correct_option)) FROM questions") == 3_500_000
    assert scalar(database, "SELECT max(correct_option) FROM questions") == "e" * 700_000


@pytest.mark.parametrize("text", ["{8BADF00D-0000-4000-8000-00000000000a}", "8badf00d" * 4])
def test_uuids_arrive_in_every_form_that_the_server_takes(
    make_database: MakeDatabase, folder: Write, text: str
) -> None:
    database = make_database(IdType.UUID)
    result = call("load-csv", str(folder(**headers_only(sessions=f"{SESSIONS}{text},\n"))))
    assert result.exit_code == 0, result.output
    assert str(scalar(database, "SELECT session_id FROM sessions")) == str(UUID(text))


@pytest.mark.parametrize(
    "text", ["8_badf00d" + "0" * 23, "8badf00d" * 3, "\u0668badf00d" + "0" * 24]
)
def test_an_almost_valid_uuid_is_refused(
    make_database: MakeDatabase, folder: Write, text: str
) -> None:
    make_database(IdType.UUID)
    result = call("load-csv", str(folder(**headers_only(sessions=f"{SESSIONS}{text},\n"))))
    fails(result, 1, f"sessions.csv line 2: session_id '{text}' is not a uuid")
