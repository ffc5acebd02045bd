"""`load-csv`: good files arrive whole; a bad row stops it with file, line and reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import pytest

from mcq_analytics.model.facts import IdType
from mcq_analytics.postgres.database import Database
from mcq_analytics_tests.commands import call, fails
from mcq_analytics_tests.conftest import MakeDatabase, made_databases, template_maker
from mcq_analytics_tests.facts_of import execute, scalar
from mcq_analytics_tests.servers import OwnServer

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

MOMENT = "2024-01-01T09:10"
SESSIONS = "session_id,expiry_time\n"


@pytest.fixture
def folder(tmp_path: Path) -> Write:
    """Return a function that writes the files, some of them replaced.

    Bytes that are not UTF-8 are given as the surrogates from DC80 to DCFF.
    """

    def write(**replaced: str) -> Path:
        directory = tmp_path / "csv"
        directory.mkdir(exist_ok=True)
        for name, content in FILES.items():
            text = replaced.get(name.removesuffix(".csv"), content)
            (directory / name).write_text(
                text, encoding="utf-8", errors="surrogateescape", newline=""
            )
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
    assert counts(database) == 0


def test_times_arrive_as_the_moments_they_are(database: Database, folder: Write) -> None:
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


def test_a_column_that_is_not_needed_may_hold_anything(database: Database, folder: Write) -> None:
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
def test_what_is_no_text_or_has_no_one_meaning_is_named(
    database: Database, folder: Write, table: str, content: str, message: str
) -> None:
    fails(call("load-csv", str(folder(**{table: content}))), 1, message, "nothing was loaded")
    assert counts(database) == 0


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
    result = call("load-csv", str(folder(**of_uuids(sessions=f"{SESSIONS}{text},\n"))))
    assert result.exit_code == 0, result.output
    assert str(scalar(database, "SELECT session_id FROM sessions")) == str(UUID(text))


@pytest.mark.parametrize(
    "text", ["8_badf00d" + "0" * 23, "8badf00d" * 3, "\u0668badf00d" + "0" * 24]
)
def test_what_is_nearly_a_uuid_is_refused(
    make_database: MakeDatabase, folder: Write, text: str
) -> None:
    make_database(IdType.UUID)
    result = call("load-csv", str(folder(**of_uuids(sessions=f"{SESSIONS}{text},\n"))))
    fails(result, 1, f"sessions.csv line 2: session_id '{text}' is not a uuid")


def of_uuids(**replaced: str) -> dict[str, str]:
    """Return files that are empty but for those given."""
    return {
        name.removesuffix(".csv"): content.partition("\n")[0] + "\n"
        for name, content in FILES.items()
    } | replaced


# Rows of answers with quoted line breaks and blank lines between them, ending on these lines.
SPREAD_LINES = {1: 2, 2: 6, 3: 8, 4: 11}


def spread(*rows: str) -> str:
    """Return a file of four answers in which a row's number does not tell its line."""
    one, two, three, four = rows
    return ANSWERS + f"{one}\n\n\r\n" + f"{two}\n" + f"\n{three}\n" + f"{four}\n"


def answers(session: str = "") -> str:
    return spread(
        f"1,7,3,5,{session},A,{MOMENT}",
        f'2,7,3,5,{session},"A\nB",{MOMENT}',
        f"3,7,3,5,{session},C,{MOMENT}",
        f'4,7,3,5,{session},"A\n\r\nB",{MOMENT}',
    )


def raising(moment: str, condition: str, **fields: str) -> tuple[str, str]:
    """Return statements that make a trigger of answers raise an error in German."""
    using = ", ".join(f"{name} = '{value}'" for name, value in fields.items())
    function = (
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"IF {condition} THEN RAISE EXCEPTION USING MESSAGE = 'doppelter Schlüssel', {using}; "
        "END IF; RETURN NEW; END $$"
    )
    return function, f"CREATE {moment} ON answers FOR EACH ROW EXECUTE FUNCTION refuse()"


@pytest.mark.parametrize("row", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "fields",
    [
        {"ERRCODE": "23505", "TABLE": "answers", "CONSTRAINT": "einmalig"},
        {"ERRCODE": "23505", "TABLE": "questions"},
        {"ERRCODE": "P0001"},
        {"ERRCODE": "42501"},
        {"ERRCODE": "Z0815", "DETAIL": "Schlüssel (answer_id)=(1) gibt es."},
    ],
    ids=lambda fields: fields["ERRCODE"] + fields.get("TABLE", ""),
)
def test_a_refused_row_is_named_by_its_line_whatever_the_server_says_of_it(
    database: Database, folder: Write, row: int, fields: dict[str, str]
) -> None:
    execute(database, *raising("TRIGGER strict BEFORE INSERT", f"NEW.answer_id = {row}", **fields))
    result = call("load-csv", str(folder(answers=answers())))
    line = SPREAD_LINES[row]
    fails(result, 1, f"answers.csv line {line}: ", "doppelter Schlüssel", "nothing was loaded")
    assert counts(database) == 0


@pytest.mark.parametrize(
    ("detail", "where"),
    [
        ("Schlüssel (answer_id)=(3) gibt es schon.", "answers.csv line 8: "),
        ("(answer_id, submitted_option)=(2, A\nB) 키가 있습니다.", "answers.csv line 6: "),
        ('Ключ (session_id, "timestamp")=(null, 2024-01-01 09:10:00+00)', "answers.csv line 11: "),
        ("Schlüssel (lower(submitted_option))=(c) gibt es schon.", "answers.csv: "),
        ("Schlüssel (answer_id)=(99) gibt es schon.", "answers.csv: "),
        ("nichts", "answers.csv: "),
    ],
)
@pytest.mark.parametrize("deferred", [False, True], ids=["at the end of COPY", "at commit"])
def test_a_row_that_is_refused_after_its_copy_is_found_by_the_key(
    database: Database, folder: Write, detail: str, where: str, deferred: bool
) -> None:
    fields = {"ERRCODE": "23503", "DETAIL": detail}
    if deferred:
        fields["TABLE"] = "answers"
    moment = "CONSTRAINT TRIGGER strict AFTER INSERT"
    later = "answers DEFERRABLE INITIALLY DEFERRED FOR"
    statements = raising(moment, "NEW.answer_id = 1", **fields)
    execute(
        database,
        *(it.replace("answers FOR", later) if deferred else it for it in statements),
    )
    result = call("load-csv", str(folder(answers=answers())))
    fails(result, 1, where, "doppelter Schlüssel", "nothing was loaded")
    assert counts(database) == 0


@pytest.mark.parametrize("moment", ["BEFORE", "AFTER"])
def test_the_row_of_the_copy_is_named_where_its_trigger_fails_in_another_table(
    database: Database, folder: Write, moment: str
) -> None:
    execute(
        database,
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "INSERT INTO\nquestions VALUES (NEW.question_id, 'B'); RETURN NEW; END $$",
        f"CREATE TRIGGER noted {moment} INSERT ON answers FOR EACH ROW EXECUTE FUNCTION note()",
    )
    content = ANSWERS + f"1,7,9,5,1,A,{MOMENT}\n\n2,7,3,5,1,A,{MOMENT}\n"
    fails(call("load-csv", str(folder(answers=content))), 1, "answers.csv line 4: ", "duplicate")


def test_a_refused_row_of_a_partition_is_named(database: Database, folder: Write) -> None:
    execute(
        database,
        "DROP TABLE sessions",
        "CREATE TABLE sessions (session_id bigint, expiry_time timestamptz) "
        "PARTITION BY LIST (session_id)",
        "CREATE TABLE sessions_rest PARTITION OF sessions (session_id REFERENCES questions) "
        "DEFAULT",
    )
    content = f"{SESSIONS}3,\n\n+08,\n3,\n"
    result = call("load-csv", str(folder(sessions=content)))
    fails(result, 1, "sessions.csv line 4: ", "foreign key")


@pytest.mark.parametrize("later", ["", "DEFERRABLE INITIALLY DEFERRED"])
@pytest.mark.parametrize("id_type", list(IdType), ids=lambda kind: kind.value)
def test_a_foreign_key_is_named_with_the_line_of_its_row(
    make_database: MakeDatabase, folder: Write, id_type: IdType, later: str
) -> None:
    database = make_database(id_type)
    execute(
        database,
        f"ALTER TABLE answers ADD FOREIGN KEY (session_id) REFERENCES sessions {later}",
    )
    ids = (
        ("8badf00d-0000-4000-8000-000000000001", "8BADF00D-0000-4000-8000-00000000000C")
        if id_type is IdType.UUID
        else ("1", "12" if id_type is IdType.TEXT else "+012")
    )
    row = [",".join([ids[0]] * 5), ids[1]]
    content = f'{row[0]},"A\n",{MOMENT}\n{row[1]},{",".join([ids[0]] * 3)},{ids[1]},A,{MOMENT}\n'
    files = of_uuids(answers=ANSWERS + content, sessions=f"{SESSIONS}{ids[0]},\n")
    result = call("load-csv", str(folder(**files)))
    fails(result, 1, "answers.csv line 4: ", "foreign key", "nothing was loaded")
    assert counts(database) == 0


def test_a_uuid_that_stands_twice_is_named_with_its_line(
    make_database: MakeDatabase, folder: Write
) -> None:
    database = make_database(IdType.UUID)
    one, other = "8badf00d-0000-4000-8000-000000000001", "8badf00d-0000-4000-8000-000000000002"
    content = f"{SESSIONS}{one},\n\n{other},\n{one.upper()},\n"
    result = call("load-csv", str(folder(**of_uuids(sessions=content))))
    fails(result, 1, "sessions.csv line 5: ", "duplicate key")
    execute(database, f"INSERT INTO sessions VALUES ('{other}')")
    content = f"{SESSIONS}{one},\n\n{other},\n"
    result = call("load-csv", str(folder(**of_uuids(sessions=content))))
    fails(result, 1, "sessions.csv line 4: ", "duplicate key")
    assert counts(database) == 1


def test_rows_are_counted_over_batches(
    database: Database, folder: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcq_analytics.sample.csv_load.ROWS_PER_BATCH", 2)
    content = SESSIONS + "".join(f"{number},\n" for number in (1, 2, 3, 4, 5, 6, 4, 8))
    fails(call("load-csv", str(folder(sessions=content))), 1, "sessions.csv line 8: ", "duplicate")


def test_a_failure_that_is_of_no_row_is_told_with_its_remedy(
    database: Database, folder: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(
        database,
        "CREATE ROLE loader LOGIN",
        "GRANT SELECT, INSERT ON questions, sessions, submissions TO loader",
        "GRANT SELECT ON answers TO loader",
    )
    url = database.url.set(username="loader").render_as_string(hide_password=False)
    monkeypatch.setenv("DB_DEV_URL", url)
    result = call("load-csv", str(folder()))
    execute(database, "DROP OWNED BY loader", "DROP ROLE loader")
    fails(result, 1, "the role may not do this", "loading ")
    assert "answers.csv" not in result.stderr
    execute(database, *raising("TRIGGER full_up BEFORE INSERT", "true", ERRCODE="53100"))
    monkeypatch.setenv("DB_DEV_URL", database.url.render_as_string(hide_password=False))
    result = call("load-csv", str(folder()))
    fails(result, 1, "the disk is full", "loading ")
    assert "answers.csv line" not in result.stderr


@pytest.fixture(scope="module")
def german_server() -> Iterator[OwnServer]:
    """A server whose messages are in German, where its translation is installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LANGUAGE", "de")
        server = OwnServer()
        server.start()
    try:
        yield server
    finally:
        server.end()


@pytest.mark.parametrize(
    ("change", "files", "where"),
    [
        ("", {"answers": answers().replace("\n4,", "\n2,")}, "answers.csv line 11: "),
        ("", {"sessions": f"{SESSIONS}\n,{MOMENT}\n"}, "sessions.csv line 3: "),
        ("INSERT INTO questions VALUES (3)", {}, "questions.csv line 2: "),
        (
            "ALTER TABLE answers ADD CHECK (submitted_option <> 'C')",
            {"answers": answers()},
            "answers.csv line 8: ",
        ),
        (
            "ALTER TABLE answers ADD FOREIGN KEY (session_id) REFERENCES sessions",
            {"answers": answers("2")},
            "answers.csv line 11: ",
        ),
        (
            "ALTER TABLE answers ALTER submitted_option TYPE varchar(1)",
            {"answers": answers()},
            "answers.csv line 6: ",
        ),
    ],
)
def test_a_german_server_names_the_line_too(
    german_server: OwnServer,
    folder: Write,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
    files: dict[str, str],
    where: str,
) -> None:
    url = german_server.url()
    with made_databases(url, template_maker(url)) as make:
        database = make(None)
        monkeypatch.setenv("DB_DEV_URL", database.url.render_as_string(hide_password=False))
        assert call("init-db", "--base-tables").exit_code == 0
        if change:
            execute(database, change)
        before = counts(database)
        result = call("load-csv", str(folder(**files)))
        fails(result, 1, where, "nothing was loaded")
        if " violates " in result.stderr or "value too long" in result.stderr:
            pytest.skip("the server has no German messages")
        assert counts(database) == before
