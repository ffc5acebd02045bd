"""Faults are recognised by SQLSTATE, never by the contents of rows."""

from __future__ import annotations

import psycopg2
import psycopg2.errorcodes
import pytest
from adbc_driver_postgresql import dbapi
from dagster import DagsterInstance, job, op
from pyspark.sql import SparkSession
from sqlalchemy import text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from mcq_analytics.definitions.run_state.run_errors import first_error
from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.errors import first_line, is_transient
from mcq_analytics_tests.facts_of import execute, run_facts, scalar, window
from mcq_analytics_tests.faults_of import FORGED, fault_of, raising

CODES = sorted(
    value
    for name, value in vars(psycopg2.errorcodes).items()
    if name.isupper() and isinstance(value, str) and len(value) == 5 and value[:2] > "02"
)
BY_NAME = ("42P01", "22023", "42704")
"""SQLSTATEs of missing objects: the name of the object decides."""

MISLEADING = (
    (
        "40001 28000 53100 57P01: could not serialize access, password authentication failed, "
        'No space left on device, relation "analytics.etl_metadata" does not exist, '
        "server closed the connection unexpectedly, the database system is starting up"
    ),
    "konnte Zugriff nicht serialisieren, Verbindung verloren, Passwort falsch",
    FORGED,
)


@pytest.fixture(scope="module")
def on_server(server: URL) -> Database:
    return Database(server, "public", "analytics")


def test_the_sqlstate_alone_decides_the_fault_whatever_the_message_says(
    on_server: Database,
) -> None:
    with (
        on_server.engine().connect() as connection,
        dbapi.connect(on_server.conninfo(), autocommit=True) as other,
        other.cursor() as cursor,
    ):

        def by_psycopg2(statement: str) -> BaseException:
            with pytest.raises(DBAPIError) as failure:
                connection.exec_driver_sql(statement.replace("%", "%%"))
            connection.rollback()
            return failure.value

        def by_adbc(statement: str) -> BaseException:
            with pytest.raises(dbapi.Error) as failure:
                cursor.execute(statement)
            error: BaseException = failure.value
            return error

        passing = set()
        for code in CODES:
            messages = ("plain", *(() if code in BY_NAME else MISLEADING))
            errors = [
                ask(raising(code, message))
                for message in messages
                for ask in (by_psycopg2, by_adbc)
            ]
            assert len({fault_of(error) for error in errors}) == 1, code
            [transient] = {is_transient(error) for error in errors}
            passing |= {code} if transient else set()
    named = {"40001", "40P01", "53300", "55P03", "57P01", "57P02", "57P03", "57P04"}
    assert passing == named | {code for code in CODES if code[:2] == "08" and code != "08004"}


@pytest.mark.parametrize(
    ("code", "message", "part"),
    [
        ("42P01", 'relation "analytics.etl_metadata" does not exist', "run mcq-analytics init-db"),
        (
            "42P01",
            "Relation »analytics.student_test_hour« existiert nicht",
            "run mcq-analytics",
        ),
        ("42P01", 'relation "analytics.stg_0123456789ab_hours" does not exist', "was lost"),
        ("42P01", 'relation "public.answers" does not exist', "asking: …"),
        ("42P01", 'missing FROM-clause entry for table "a"', "asking: …"),
        ("22023", 'invalid snapshot identifier: "00000003-0000001B-1"', "was lost"),
        ("42704", "Snapshot »00000003-0000001B-1« existiert nicht", "was lost"),
        ("22023", 'invalid value for parameter "x": "00000003-0000001B-1"', "asking: …"),
        ("42704", 'type "snapshot" does not exist', "asking: …"),
        ("57014", "storniere Anfrage", "raise MCQ_STATEMENT_TIMEOUT"),
        ("28P01", "Passwort-Authentifizierung fehlgeschlagen", "the password or user is wrong"),
        ("53100", "konnte Datei nicht erweitern", "the disk is full"),
    ],
)
def test_a_fault_has_its_remedy_whatever_the_language_of_the_server(
    on_server: Database, code: str, message: str, part: str
) -> None:
    with pytest.raises(DBAPIError) as failure:
        execute(on_server, raising(code, message).replace(":", r"\:"))
    assert part in fault_of(failure.value)
    assert first_line(failure.value) == message


def test_a_snapshot_that_is_gone_is_reported_as_a_lost_connection(on_server: Database) -> None:
    with on_server.engine().connect() as plain:
        connection = plain.execution_options(isolation_level="REPEATABLE READ")
        with pytest.raises(DBAPIError) as failure:
            connection.execute(text("SET TRANSACTION SNAPSHOT '00000003-0000001B-1'"))
    assert "the connection to the server was lost" in fault_of(failure.value)


@pytest.mark.parametrize("student", [40001, 28000])
def test_a_student_id_that_looks_like_a_sqlstate_decides_nothing(
    database: Database, spark: SparkSession, student: int
) -> None:
    execute(
        database,
        "CREATE UNIQUE INDEX one_test ON analytics.test_summary_fact (student_id)",
        f"INSERT INTO answers VALUES (1, {student}, 3, 5, 1, 'A', '2024-01-01 09:10Z'), "
        f"(2, {student}, 3, 6, 1, 'A', '2024-01-01 09:10Z')",
    )
    with pytest.raises(DBAPIError, match=rf"Key \(student_id\)=\({student}\)") as failure:
        run_facts(database, spark, window("2024-01-01T09", "2024-01-01T10"))
    assert fault_of(failure.value) == "asking: …"
    assert (
        scalar(database, "SELECT string_agg(DISTINCT error, ',') FROM analytics.etl_metadata")
        == 'duplicate key value violates unique constraint "one_test"'
    )


def test_the_error_text_of_a_failed_run_is_shown_without_guessing_a_remedy() -> None:
    @op
    def broken() -> None:
        raise ValueError("Key (student_id)=(40001): could not serialize access")

    @job
    def fails() -> None:
        broken()

    with DagsterInstance.ephemeral() as instance:
        result = fails.execute_in_process(instance=instance, raise_on_error=False)
    said = "the run: Key (student_id)=(40001): could not serialize access"
    assert first_error(result.all_events) == said
