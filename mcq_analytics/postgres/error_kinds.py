"""The known faults of PostgreSQL and Spark, each with its remedy, and how they are recognised.

A fault is recognised by the server's SQLSTATE; if there is none, by where the error arose and what
libpq said. How users see it is in `errors`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mcq_analytics.model.facts import FACTS, FACTS_BY_NAME
from mcq_analytics.postgres.task_errors import Origin, Report

LOCK_NOT_AVAILABLE = "55P03"
INSUFFICIENT_PRIVILEGE = "42501"
QUERY_CANCELED = "57014"
CHECK_VIOLATION = "23514"


@dataclass(frozen=True)
class Fault:
    """A kind of failure: what happened, and what to do.

    After a transient fault the same work may succeed a moment later.
    """

    what: str
    remedy: str
    transient: bool = False


WRONG_ROW = Fault(
    "a computed row breaks a rule of its fact",
    "nothing of it was stored; this is a defect of mcq_analytics: report it with this line",
)
NO_SCHEMA = Fault("the fact schema does not exist", "run mcq-analytics init-db")
UNTRUSTED = Fault(
    "the server's certificate is not trusted",
    "check sslrootcert and the host in the database URL, or ask the server's administrator",
)
NO_TLS = Fault(
    "one side requires TLS and the other does not offer it", "check sslmode in the database URL"
)
WRONG_PASSWORD = Fault(
    "the password or user is wrong", "check the user and password in the database URL"
)
NOT_LET_IN = Fault(
    "the server does not accept this user or host",
    "check the user in the database URL and the server's pg_hba.conf",
)
NO_DATABASE = Fault(
    "the database does not exist", "check the name in the database URL, or create it"
)
UNKNOWN_HOST = Fault("the host is unknown", "check the host in the database URL")
NO_NAME_SERVICE = Fault(
    "the host's name cannot be looked up now", "run it again, or check the name service", True
)
DISK_FULL = Fault(
    "the disk is full",
    "free space in the tablespace of the fact schema; the next run of the window loses nothing",
)
OWN_DISK_FULL = Fault(
    "the disk is full on the machine that runs Spark",
    "free space there; the next run loses nothing",
)
NO_RESOURCES = Fault(
    "the server lacks memory or another resource", "check its log, or run a shorter window"
)
FORBIDDEN = Fault("the role may not do this", "grant it as in mcq_analytics/postgres/roles.sql")
READ_ONLY = Fault("the server takes no writes", "give the URL of the primary, not of a standby")
CANCELLED = Fault(
    "a statement took too long or was cancelled",
    "raise MCQ_STATEMENT_TIMEOUT, run a shorter window, or look for a missing index",
)
WAITED_TOO_LONG = Fault(
    "the computation took longer than a connection may stay idle",
    "raise MCQ_STATEMENT_TIMEOUT, or run a shorter window",
)
NO_JAVA = Fault(
    "Spark's Java process has ended",
    "run it again; if it was killed for its memory, lower MCQ_SPARK_DRIVER_MEMORY",
)
NO_SPARK_SERVER = Fault(
    "the Spark server has ended, or ended this session",
    "run it again; check that the server is up (mcq-analytics spark-server --check)",
    True,
)
# Spark itself replaces a worker that dies in a task. This is one that dies while planning a read.
NO_WORKER = Fault(
    "a Python worker of Spark has ended",
    "run it again; if it was killed for its memory, run a shorter window",
    True,
)
NO_PACKAGE = Fault(
    "Spark's executors lack a Python package",
    "install mcq_analytics where they run, or set PYSPARK_PYTHON to a Python there that has it",
)
OTHER_VERSION = Fault(
    "Spark's executors have another version of mcq_analytics",
    "install the same version where they run, and restart the Spark server if there is one",
)
OTHER_PYTHON = Fault(
    "Spark's executors have another Python",
    "set PYSPARK_PYTHON to a Python there of the same minor version, with mcq_analytics",
)
UNREACHABLE = Fault(
    "the server cannot be reached",
    "check host and port in the database URL, and whether the server is running",
    True,
)
STARTING = Fault("the server is starting or stopping", "run it again when it is up", True)
TOO_MANY = Fault(
    "the server has no free connection",
    "raise max_connections or the limit of the role or database, or run less in parallel",
    True,
)
LOCKED = Fault("a table was locked for too long", "run it again when the lock is released", True)
IN_THE_WAY = Fault("another transaction was in the way", "run it again", True)
LOST = Fault(
    "the connection to the server was lost", "run it again; nothing was half-written", True
)
REFUSED = Fault(
    "the server refused the connection",
    "check host, port, user, password and database in the database URL",
)

_BY_STATE = {
    "08": LOST,
    "08001": UNREACHABLE,
    "08004": REFUSED,
    "25006": READ_ONLY,
    "25P03": WAITED_TOO_LONG,
    "25P04": WAITED_TOO_LONG,
    "28": NOT_LET_IN,
    "28P01": WRONG_PASSWORD,
    "3D000": NO_DATABASE,
    "40001": IN_THE_WAY,
    "40P01": IN_THE_WAY,
    INSUFFICIENT_PRIVILEGE: FORBIDDEN,
    "53": NO_RESOURCES,
    "53100": DISK_FULL,
    "53300": TOO_MANY,
    LOCK_NOT_AVAILABLE: LOCKED,
    QUERY_CANCELED: CANCELLED,
    "57P01": LOST,
    "57P02": STARTING,
    "57P03": STARTING,
    "57P04": LOST,  # a replica has replayed that its database was dropped: perhaps for a new one
    "57P05": WAITED_TOO_LONG,
}
"""By SQLSTATE; two characters stand for all others of that class."""

_BY_ORIGIN = {
    Origin.JAVA: NO_JAVA,
    Origin.SPARK_SERVER: NO_SPARK_SERVER,
    Origin.WORKER: NO_WORKER,
    Origin.NO_PACKAGE: NO_PACKAGE,
    Origin.OTHER_VERSION: OTHER_VERSION,
    Origin.OTHER_PYTHON: OTHER_PYTHON,
    Origin.DISK: OWN_DISK_FULL,
}

# libpq has no SQLSTATE for a connection that fails or is lost, so words decide: its own, those of
# the operating system, and the server's FATAL messages. None of them contains a row. In another
# language none matches, which leaves `REFUSED` or `LOST`.
_BY_WORDS = (
    (
        (
            r"certificate verify failed|server certificate for .* does not match|"
            r"root certificate file .* does not exist|could not (get|read) root certificate"
        ),
        UNTRUSTED,
    ),
    (r"does not support SSL|no pg_hba\.conf entry for [^\n]*no encryption", NO_TLS),
    (r"password authentication failed|no password supplied", WRONG_PASSWORD),
    (
        (
            r"no pg_hba\.conf entry|authentication failed for user|"
            r"role .* (does not exist|is not permitted to log in)"
        ),
        NOT_LET_IN,
    ),
    (r"FATAL:  database .* does not exist", NO_DATABASE),
    (r"FATAL:  permission denied for database", FORBIDDEN),
    (r"Temporary failure in name resolution", NO_NAME_SERVICE),
    (r"could not translate host name|Name or service not known", UNKNOWN_HOST),
    (
        (
            r"too many clients|too many connections for (role|database)|"
            r"remaining connection slots|number of requested standby connections"
        ),
        TOO_MANY,
    ),
    (
        (
            r"the database system is (starting up|shutting down|in recovery mode|"
            r"not (yet )?accepting connections)"
        ),
        STARTING,
    ),
    (
        (
            r"[Cc]onnection refused|(failed|server): No such file or directory|timeout expired|"
            r"No route to host|Network is unreachable|[Cc]onnection timed out"
        ),
        UNREACHABLE,
    ),
    (r"terminating connection due to idle|idle-in-transaction timeout", WAITED_TOO_LONG),
    (
        (
            r"terminating connection|[Cc]onnection[^\n]*(closed|lost|reset|aborted)|"
            r"closed the connection|no connection to the server|could not (receive|send) data|"
            r"server conn crashed|SSL SYSCALL error|Broken pipe|EOF detected"
        ),
        LOST,
    ),
)

_UNDEFINED_TABLE = "42P01"
_OUR_TABLES = {
    "etl_metadata",
    "running_attempt",
    "hour_fingerprint",
    "wrong_hour",
    "student_test_hour",
    "student_test_submissions",
    *(fact.name for fact in FACTS),
}
_NO_SUCH_SNAPSHOT = ("22023", "42704")
"""Until PostgreSQL 15, and since. Other parameters and objects have these codes too."""


def fault_of(report: Report) -> Fault | None:
    """Return the known fault that an error is, or None."""
    if report.state is not None:
        return _fault_of_state(report.state, report.message)
    if report.origin in (Origin.CONNECTING, Origin.CONNECTED, Origin.LIBPQ):
        for words, fault in _BY_WORDS:
            if re.search(words, report.message):
                return fault
        return LOST if report.origin is Origin.CONNECTED else REFUSED
    return _BY_ORIGIN.get(report.origin)


def _fault_of_state(state: str, message: str) -> Fault | None:
    # The server has no field for the name of a table or snapshot that does not exist. Its message,
    # in any language, quotes that name first.
    quoted = re.search(r"[\"'«»„“”]([^\"'«»„“”]+)[\"'«»„“”]", message)
    name = quoted[1].rpartition(".")[2] if quoted is not None else ""
    if state == _UNDEFINED_TABLE:
        # Staging tables are dropped with their attempt, so its session was lost.
        return NO_SCHEMA if name in _OUR_TABLES else LOST if name.startswith("stg_") else None
    if state == CHECK_VIOLATION:
        return WRONG_ROW if name in FACTS_BY_NAME else None
    if state in _NO_SUCH_SNAPSHOT:
        # A snapshot ends with the session that exported it, so that was lost.
        return LOST if re.fullmatch(r"[0-9A-F]{8}-[0-9A-F]{8}-\d+", name) else None
    return _BY_STATE.get(state) or _BY_STATE.get(state[:2])
