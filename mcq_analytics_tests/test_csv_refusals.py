"""`load-csv` when the server refuses a row: the error names the line, in any language."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mcq_analytics.model.facts import IdType
from mcq_analytics.postgres.database import Database
from mcq_analytics_tests.commands import call, fails
from mcq_analytics_tests.conftest import MakeDatabase, made_databases, template_maker
from mcq_analytics_tests.csv_files import (
    ANSWERS,
    MOMENT,
    SESSIONS,
    Write,
    csv_writer,
    headers_only,
    row_count,
)
from mcq_analytics_tests.facts_of import execute
from mcq_analytics_tests.servers import OwnServer

# The rows of `spread` end on these lines: some have quoted line breaks, blank lines lie between.
SPREAD_LINES = {1: 2, 2: 6, 3: 8, 4: 11}


@pytest.fixture
def folder(tmp_path: Path) -> Write:
    """Return a function that writes the files."""
    return csv_writer(tmp_path / "csv")


def spread(*rows: str) -> str:
    """Return a file of four answers whose row numbers are not their line numbers."""
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
    """Return statements that create a trigger on answers, which raises an error in German."""
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
def test_a_refused_row_is_named_by_its_line_whatever_the_error(
    database: Database, folder: Write, row: int, fields: dict[str, str]
) -> None:
    execute(database, *raising("TRIGGER strict BEFORE INSERT", f"NEW.answer_id = {row}", **fields))
    result = call("load-csv", str(folder(answers=answers())))
    line = SPREAD_LINES[row]
    fails(result, 1, f"answers.csv line {line}: ", "doppelter Schlüssel", "nothing was loaded")
    assert row_count(database) == 0


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
def test_a_row_that_is_refused_after_its_copy_is_found_by_its_key(
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
    assert row_count(database) == 0


@pytest.mark.parametrize("moment", ["BEFORE", "AFTER"])
def test_the_copied_row_is_named_if_its_trigger_fails_in_another_table(
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
    files = headers_only(answers=ANSWERS + content, sessions=f"{SESSIONS}{ids[0]},\n")
    result = call("load-csv", str(folder(**files)))
    fails(result, 1, "answers.csv line 4: ", "foreign key", "nothing was loaded")
    assert row_count(database) == 0


def test_a_repeated_uuid_is_named_with_its_line(make_database: MakeDatabase, folder: Write) -> None:
    database = make_database(IdType.UUID)
    one, other = "8badf00d-0000-4000-8000-000000000001", "8badf00d-0000-4000-8000-000000000002"
    content = f"{SESSIONS}{one},\n\n{other},\n{one.upper()},\n"
    result = call("load-csv", str(folder(**headers_only(sessions=content))))
    fails(result, 1, "sessions.csv line 5: ", "duplicate key")
    execute(database, f"INSERT INTO sessions VALUES ('{other}')")
    content = f"{SESSIONS}{one},\n\n{other},\n"
    result = call("load-csv", str(folder(**headers_only(sessions=content))))
    fails(result, 1, "sessions.csv line 4: ", "duplicate key")
    assert row_count(database) == 1


def test_line_numbers_continue_over_batches(
    database: Database, folder: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcq_analytics.sample.csv_load.ROWS_PER_BATCH", 2)
    content = SESSIONS + "".join(f"{number},\n" for number in (1, 2, 3, 4, 5, 6, 4, 8))
    fails(call("load-csv", str(folder(sessions=content))), 1, "sessions.csv line 8: ", "duplicate")


def test_a_failure_that_is_not_about_a_row_has_its_remedy(
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
    """A server whose messages are in German, if its translation is installed."""
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
        before = row_count(database)
        result = call("load-csv", str(folder(**files)))
        fails(result, 1, where, "nothing was loaded")
        if " violates " in result.stderr or "value too long" in result.stderr:
            pytest.skip("the server has no German messages")
        assert row_count(database) == before
