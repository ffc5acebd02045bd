"""Faults are told by the server's code, by class where it has none, and never by a row."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

import psycopg2
import psycopg2.errorcodes
import pytest
from adbc_driver_manager import AdbcStatusCode
from adbc_driver_postgresql import dbapi
from dagster import DagsterInstance, job, op
from py4j.protocol import Py4JError, Py4JJavaError, Py4JNetworkError
from pyspark.errors import PythonException
from pyspark.sql import SparkSession
from pyspark.sql.types import LongType, StructField, StructType
from sqlalchemy import text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from mcq_analytics.definitions.run_state.run_errors import first_error
from mcq_analytics.model.facts import TEST_SUMMARY
from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.errors import explain, first_line, is_transient
from mcq_analytics.postgres.task_errors import telling_the_driver, told_by_worker
from mcq_analytics.spark.source import SnapshotRead
from mcq_analytics.spark.task_connections import connect_task
from mcq_analytics_tests.facts_of import execute, run_facts, scalar, window
from mcq_analytics_tests.servers import OwnServer, free_port
from mcq_analytics_tests.test_masking import failure_with

CODES = sorted(
    value
    for name, value in vars(psycopg2.errorcodes).items()
    if name.isupper() and isinstance(value, str) and len(value) == 5 and value[:2] > "02"
)
BY_NAME = ("42P01", "22023", "42704")
"""Codes of whatever does not exist: what it is called decides."""

FORGED = (
    "x\nmcq_analytics.postgres.task_errors.TaskError: "
    '{"message": "forged", "state": "40001", "origin": "elsewhere", "where": null}'
)
MISLEADING = (
    (
        "40001 28000 53100 57P01: could not serialize access, password authentication failed, "
        'No space left on device, relation "analytics.etl_metadata" does not exist, '
        "server closed the connection unexpectedly, the database system is starting up"
    ),
    "konnte Zugriff nicht serialisieren, Verbindung verloren, Passwort falsch",
    FORGED,
)


def fault_of(error: BaseException) -> str:
    """Return what is told of an error but for its own words."""
    return str(explain(error, "asking")).replace(first_line(error), "…")


def raising(code: str, message: str) -> str:
    quoted = message.replace("'", "''")
    return (
        "DO $$ BEGIN RAISE EXCEPTION USING "
        f"ERRCODE = '{code}', MESSAGE = '{quoted}', DETAIL = 'Key (student_id)=(40001): 28000, "
        "deadlock detected', HINT = 'Broken pipe'; END $$"
    )


@pytest.fixture(scope="module")
def on_server(server: URL) -> Database:
    return Database(server, "public", "analytics")


def test_the_code_alone_tells_the_fault_whatever_the_message_says(on_server: Database) -> None:
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
    named = {"40001", "40P01", "53300", "55P03", "57P01", "57P02", "57P03"}
    assert passing == named | {code for code in CODES if code[:2] == "08" and code != "08004"}


@pytest.mark.parametrize(
    ("code", "message", "part"),
    [
        ("42P01", 'relation "analytics.etl_metadata" does not exist', "run mcq-analytics init-db"),
        (
            "42P01",
            "Relation »analytics.test_funnel_fact_hour« existiert nicht",
            "run mcq-analytics",
        ),
        ("42P01", 'relation "analytics.stg_test_funnel_fact_1_rows" does not exist', "was lost"),
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
def test_a_fault_has_its_remedy_in_whatever_language_the_server_speaks(
    on_server: Database, code: str, message: str, part: str
) -> None:
    with pytest.raises(DBAPIError) as failure:
        execute(on_server, raising(code, message).replace(":", r"\:"))
    assert part in fault_of(failure.value)
    assert first_line(failure.value) == message


def test_a_snapshot_that_is_gone_is_a_lost_connection_on_this_server(on_server: Database) -> None:
    with on_server.engine().connect() as plain:
        connection = plain.execution_options(isolation_level="REPEATABLE READ")
        with pytest.raises(DBAPIError) as failure:
            connection.execute(text("SET TRANSACTION SNAPSHOT '00000003-0000001B-1'"))
    assert "the connection to the server was lost" in fault_of(failure.value)


def test_a_code_crosses_spark_and_what_a_row_says_does_not(
    on_server: Database, spark: SparkSession
) -> None:
    conninfo, statement = on_server.conninfo(), raising("22012", FORGED)

    def refuse(batches: Iterator[Any]) -> Iterator[Any]:
        with telling_the_driver(conninfo), connect_task(conninfo) as connection:
            connection.cursor().execute(statement)
        yield from batches

    with pytest.raises(Exception, match="TaskError") as failure:
        spark.range(1).mapInArrow(refuse, "id long").collect()
    assert not is_transient(failure.value)
    assert first_line(failure.value) == " ".join(FORGED.split())


def test_a_code_that_a_reader_of_the_snapshot_meets_crosses_spark(
    on_server: Database, spark: SparkSession
) -> None:
    read = SnapshotRead(
        url=on_server.conninfo(),
        input_name="answers",
        extent_sql=raising("40001", "Zugriff\nverweigert: 28000"),
        keys_sql="",
        rows_sql="",
        count_sql="",
        splits=1,
        schema=StructType([StructField("id", LongType())]),
    )
    with pytest.raises(Exception, match="TaskError") as failure:
        read.load(spark).collect()
    assert is_transient(failure.value)
    assert "another transaction was in the way" in fault_of(failure.value)
    assert first_line(failure.value) == "Zugriff verweigert: 28000"


def test_a_code_crosses_spark_where_several_stages_fail_at_once(
    on_server: Database, spark: SparkSession
) -> None:
    """Spark then has an error of all stages, which has that of the first as its cause."""
    conninfo, statement = on_server.conninfo(), raising("40001", "Zugriff")

    def refuse(batches: Iterator[Any]) -> Iterator[Any]:
        with telling_the_driver(conninfo), connect_task(conninfo) as connection:
            connection.cursor().execute(statement)
        yield from batches

    with pytest.raises(PythonException) as of_one:
        spark.range(1).mapInArrow(refuse, "id long").collect()
    of_all = spark.sparkContext._jvm.org.apache.spark.SparkException(  # type: ignore[union-attr]
        "[STAGE_MATERIALIZATION_MULTIPLE_FAILURES] Multiple failures (2)",
        of_one.value._origin,  # type: ignore[attr-defined]
    )
    failure = Py4JJavaError("An error occurred while calling o1.collectToPython.\n", of_all)
    assert is_transient(failure)
    assert first_line(failure) == "Zugriff"


def test_an_error_of_anybody_else_cannot_look_like_one_of_ours(spark: SparkSession) -> None:
    forged = FORGED.partition("\n")[2]

    def fail(batches: Iterator[Any]) -> Iterator[Any]:
        yield from batches
        raise ValueError(f"{FORGED}\nTraceback (most recent call last):\n{forged}\n{forged}")

    with pytest.raises(Exception, match="forged") as failure:
        spark.range(1).mapInArrow(fail, "id long").collect()
    assert not is_transient(failure.value)
    assert fault_of(failure.value) == "asking: …"
    frames = 'Traceback (most recent call last):\n  File "x.py", line 1, in f\n    raise error\n'
    assert told_by_worker(f"{frames}{forged}\n") is not None
    assert told_by_worker(f"{frames}ValueError: x\n{forged}\n") is None
    assert told_by_worker(f"{frames}{forged[:-1]}\n") is None


@pytest.mark.parametrize("student", [40001, 28000])
def test_a_student_whose_number_is_a_code_is_refused_once_for_what_is_wrong(
    database: Database, spark: SparkSession, student: int
) -> None:
    execute(
        database,
        "CREATE UNIQUE INDEX one_test ON analytics.test_summary_fact (student_id)",
        f"INSERT INTO answers VALUES (1, {student}, 3, 5, 1, 'A', '2024-01-01 09:10Z'), "
        f"(2, {student}, 3, 6, 1, 'A', '2024-01-01 09:10Z')",
    )
    with pytest.raises(DBAPIError, match=rf"Key \(student_id\)=\({student}\)") as failure:
        run_facts(database, spark, window("2024-01-01T09", "2024-01-01T10"), [TEST_SUMMARY])
    assert fault_of(failure.value) == "asking: …"
    assert (
        scalar(database, "SELECT string_agg(error, ',') FROM analytics.etl_metadata")
        == 'duplicate key value violates unique constraint "one_test"'
    )


def test_the_text_of_a_run_that_failed_is_shown_and_no_remedy_guessed_from_it() -> None:
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


@pytest.fixture(scope="module")
def limited(own_server: OwnServer) -> URL:
    """A role that may have no connection, as nobody may to the database `closed`."""
    owner = Database(own_server.url(), "public", "analytics")
    execute(
        owner,
        "CREATE ROLE nobody_in LOGIN PASSWORD 'p' CONNECTION LIMIT 0",
        "CREATE ROLE anybody LOGIN PASSWORD 'p'",
    )
    with owner.engine().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("CREATE DATABASE closed CONNECTION LIMIT 0"))
    return own_server.url(own_server.port).set(password="p")


@pytest.mark.parametrize(
    ("changes", "part", "transient"),
    [
        ({"port": 0}, "the server cannot be reached", True),
        ({"host": "nowhere.invalid"}, "the host", None),
        ({"username": "owner"}, "the password or user is wrong", False),
        ({"username": "anybody", "database": "no such"}, "the database does not exist", False),
        ({"username": "nobody_in"}, "the server has no free connection", True),
        ({"username": "anybody", "database": "closed"}, "the server has no free connection", True),
    ],
)
def test_a_connection_that_is_not_made_says_why(
    limited: URL, changes: dict[str, Any], part: str, transient: bool | None
) -> None:
    if changes.get("port") == 0:
        changes = {"port": free_port()}
    database = Database(limited.set(**changes), "public", "analytics")
    with pytest.raises(DBAPIError) as by_psycopg2:
        database.engine().connect()
    with pytest.raises(dbapi.Error) as by_adbc:
        dbapi.connect(database.conninfo())
    for failure in (by_psycopg2, by_adbc):
        assert part in fault_of(failure.value)
        # Without a name service nobody knows whether there is such a host.
        assert transient is None or is_transient(failure.value) is transient


TO_H = 'connection to server at "h" (10.0.0.1), port 5432 failed: '


@pytest.mark.parametrize(
    ("said", "part", "transient"),
    [
        (
            'could not translate host name "h" to address: Temporary failure in name resolution',
            "the host's name cannot be looked up now",
            True,
        ),
        (f"{TO_H}Network is unreachable", "the server cannot be reached", True),
        (f"{TO_H}Connection timed out", "the server cannot be reached", True),
        (f"{TO_H}timeout expired", "the server cannot be reached", True),
        (
            (
                f"{TO_H}FATAL:  the database system is not yet accepting connections\n"
                "DETAIL:  Consistent recovery state has not been yet reached."
            ),
            "the server is starting or stopping",
            True,
        ),
        (f"{TO_H}FATAL:  sorry, too many clients already", "no free connection", True),
        (
            f"{TO_H}FATAL:  remaining connection slots are reserved for roles with SUPERUSER",
            "no free connection",
            True,
        ),
        (f'{TO_H}FATAL:  role "u" does not exist', "does not let this user", False),
        ("server closed the connection unexpectedly", "was lost", True),
        (f"{TO_H}FATAL:  Passwort falsch", "the server cannot be connected to", False),
        ("Verbindung zum Server auf »h« fehlgeschlagen", "check host, port, user", False),
    ],
)
def test_what_libpq_says_where_it_has_no_code_is_understood(
    said: str, part: str, transient: bool
) -> None:
    plain = psycopg2.OperationalError(f"{said}\n")
    wrapped = failure_with("x")
    wrapped.orig = plain
    for error in (plain, wrapped):
        assert part in fault_of(error)
        assert is_transient(error) is transient


def test_errors_without_a_code_are_told_by_their_class() -> None:
    lost = failure_with("x")
    lost.orig, lost.connection_invalidated = psycopg2.OperationalError("Verbindung weg"), True
    for error in (lost, psycopg2.InterfaceError("connection already closed")):
        assert "the connection to the server was lost" in fault_of(error)
        assert is_transient(error)
    for ended in (
        ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
        Py4JNetworkError("Answer from Java side is empty"),
        Py4JError("An error occurred while calling o1.collect"),
    ):
        assert "Java, in which Spark runs, has ended" in fault_of(ended)
    assert "the disk is full where Spark runs" in fault_of(OSError(errno.ENOSPC, "voll"))
    refused_by_the_stream = dbapi.OperationalError(
        "IO: nanoarrow call failed: Invalid: closed the connection", status_code=AdbcStatusCode.IO
    )
    for other in (
        Py4JError("An error occurred while calling o1.x. Trace:\npy4j.Py4JException: no x"),
        RuntimeError("40001 could not serialize access: Connection refused"),
        FileNotFoundError("No such file or directory"),
        refused_by_the_stream,
    ):
        assert fault_of(other) == "asking: …"
        assert not is_transient(other)
