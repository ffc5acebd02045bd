"""Faults without a SQLSTATE: recognised by libpq's words or by the class of the error."""

from __future__ import annotations

import errno
from typing import Any

import psycopg2
import psycopg2.errorcodes
import pytest
from adbc_driver_manager import AdbcStatusCode
from adbc_driver_postgresql import dbapi
from py4j.protocol import Py4JError, Py4JNetworkError
from sqlalchemy import text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.errors import is_transient
from mcq_analytics_tests.facts_of import execute
from mcq_analytics_tests.faults_of import fault_of
from mcq_analytics_tests.servers import OwnServer, free_port
from mcq_analytics_tests.test_masking import failure_with


@pytest.fixture(scope="module")
def limited(own_server: OwnServer) -> URL:
    """A role without connections, and the database `closed`, to which nobody may connect."""
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
def test_a_failed_connection_gets_its_reason(
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
        # Without a name service, an unknown host looks like a name service that is down.
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
        (f'{TO_H}FATAL:  role "u" does not exist', "does not accept this user", False),
        ("server closed the connection unexpectedly", "was lost", True),
        (f"{TO_H}FATAL:  Passwort falsch", "the server refused the connection", False),
        ("Verbindung zum Server auf »h« fehlgeschlagen", "check host, port, user", False),
    ],
)
def test_libpqs_messages_without_a_sqlstate_are_recognised(
    said: str, part: str, transient: bool
) -> None:
    plain = psycopg2.OperationalError(f"{said}\n")
    wrapped = failure_with("x")
    wrapped.orig = plain
    for error in (plain, wrapped):
        assert part in fault_of(error)
        assert is_transient(error) is transient


def test_errors_without_a_sqlstate_are_recognised_by_their_class() -> None:
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
        assert "Spark's Java process has ended" in fault_of(ended)
    assert "the disk is full on the machine that runs Spark" in fault_of(
        OSError(errno.ENOSPC, "voll")
    )
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
