"""What went wrong in PostgreSQL or Spark, as one line with the remedy, and never a password."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mcq_analytics.errors import BaseTablesChangedError, McqError

LOCK_NOT_AVAILABLE = "55P03"


@dataclass(frozen=True)
class Fault:
    """A kind of failure: a pattern over its message, what happened, and what to do.

    A transient fault passes by itself: the same work may succeed a moment later.
    """

    pattern: str
    what: str
    remedy: str
    transient: bool = False


_FAULTS = (
    Fault(
        r'relation "[^"]*(etl_metadata|_fact|running_attempt)(_hour)?" does not exist',
        "the fact schema is not there",
        "run mcq-analytics init-db",
    ),
    Fault(
        (
            r"certificate verify failed|server certificate for .* does not match|"
            r"root certificate file .* does not exist|could not (get|read) root certificate"
        ),
        "the server's certificate is not trusted",
        "check sslrootcert and the host in the database URL, or ask who runs the server",
    ),
    Fault(
        r"does not support SSL|no pg_hba\.conf entry for [^\n]*no encryption",
        "one side asks for TLS and the other does not offer it",
        "check sslmode in the database URL",
    ),
    Fault(
        r"password authentication failed|28P01|no password supplied",
        "the password or user is wrong",
        "check the user and password in the database URL",
    ),
    Fault(
        r"no pg_hba\.conf entry|28000",
        "the server does not let this user or host in",
        "check the user in the database URL and the server's pg_hba.conf",
    ),
    Fault(
        r'database "[^"]*" does not exist|3D000',
        "the database does not exist",
        "check the name in the database URL, or create it",
    ),
    Fault(
        r"could not translate host name|Name or service not known",
        "the host is not known",
        "check the host in the database URL",
    ),
    Fault(
        r"No space left on device|53100|DiskFull|could not extend file",
        "the disk is full",
        "free space in the tablespace of the fact schema; the next run of the window loses nothing",
    ),
    Fault(
        r"permission denied|42501",
        "the role may not do this",
        "grant it as in mcq_analytics/storage/roles.sql",
    ),
    Fault(
        r"read-only transaction|25006",
        "the server takes no writes",
        "give the URL of the primary, not of a standby",
    ),
    Fault(
        r"canceling statement due to statement timeout",
        "a statement took too long",
        "raise MCQ_STATEMENT_TIMEOUT, run a shorter window, or look for a missing index",
    ),
    Fault(
        r"idle-in-transaction timeout|idle-session timeout|25P03|57P05",
        "the computation took longer than a connection may wait",
        "raise MCQ_STATEMENT_TIMEOUT, or run a shorter window",
    ),
    Fault(
        # Python numbers its own errors; libpq, which reaches the server, does not.
        (
            r"\[Errno \d+\] (Connection refused|Connection reset|Broken pipe)|"
            r"Answer from Java side is empty|Error while (sending|receiving|obtaining)|"
            r"does not exist in the JVM"
        ),
        "Java, in which Spark runs, has ended",
        "run it again; where it was killed for its memory, set MCQ_SPARK_DRIVER_MEMORY lower",
    ),
    Fault(
        r"[Cc]onnection refused|No such file or directory|timeout expired|No route to host",
        "the server cannot be reached",
        "check host and port in the database URL, and that the server runs",
        transient=True,
    ),
    Fault(
        r"the database system is (starting up|shutting down|in recovery mode)|57P0[23]",
        "the server is starting or stopping",
        "run it again when the server is up",
        transient=True,
    ),
    Fault(
        r"53300|too many clients|remaining connection slots",
        "the server has no free connection",
        "raise max_connections, or run less at once",
        transient=True,
    ),
    Fault(
        r"canceling statement due to lock timeout|55P03",
        "a table was locked for too long",
        "run it again when what locks it has ended",
        transient=True,
    ),
    Fault(
        r"could not serialize access|deadlock detected|40001|40P01",
        "another transaction was in the way",
        "run it again",
        transient=True,
    ),
    Fault(
        # The death of one that computes a task is Spark's to heal; others plan what a task reads.
        r"Python worker exited unexpectedly",
        "a Python worker of Spark has ended",
        "run it again; where it was killed for its memory, run a shorter window",
        transient=True,
    ),
    Fault(
        # A snapshot ends with the session that holds it, staging tables with what was lost.
        (
            r"terminating connection|[Cc]onnection[^\n]*(closed|lost|reset|aborted)|"
            r"closed the connection|no connection to the server|could not receive data|"
            r'snapshot "[^"]*" does not exist|invalid snapshot identifier|57P01|'
            r'relation "[^"]*stg_[^"]*" does not exist|'
            r"server conn crashed|SSL SYSCALL error|Broken pipe|EOF detected"
        ),
        "the connection to the server was lost",
        "run it again; nothing was half-written",
        transient=True,
    ),
)

_URL_PASSWORD = re.compile(r"(://[^:/@\s]*):[^@\s]*@")


def mask(text: str) -> str:
    """Return `text` with the password of any URL in it blotted out."""
    return _URL_PASSWORD.sub(r"\1:***@", text)


def first_line(error: BaseException) -> str:
    """Return what an error says, in one masked line: PostgreSQL's own words where it has any."""
    message = str(getattr(error, "orig", None) or error).strip()
    reported = re.findall(r"(?:ERROR|FATAL|PANIC):\s+([^\n]+)", message)
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    chosen = reported[-1] if reported else _telling_line(lines)
    return mask(chosen or type(error).__name__)


def in_short(error: BaseException) -> str:
    """Return what is known of an error in one masked line: the kind of fault, and what it says."""
    fault = None if isinstance(error, McqError) else _fault(error)
    detail = first_line(error)
    return detail if fault is None else f"{fault.what} ({detail})"


def explain(error: BaseException, doing: str) -> McqError:
    """Return the error that a user sees for a failure of PostgreSQL or Spark while `doing`.

    An `McqError` is returned as it is.
    """
    if isinstance(error, McqError):
        return error
    fault = _fault(error)
    remedy = f": {fault.remedy}" if fault is not None else ""
    return McqError(f"{doing}: {in_short(error)}{remedy}")


def is_transient(error: BaseException) -> bool:
    """Return whether a failure of PostgreSQL or Spark is of a kind that passes by itself."""
    if isinstance(error, BaseTablesChangedError):
        return True
    fault = None if isinstance(error, McqError) else _fault(error)
    return fault is not None and fault.transient


def _fault(error: BaseException) -> Fault | None:
    message = f"{error} {getattr(getattr(error, 'orig', None), 'pgcode', None) or ''}"
    return next((fault for fault in _FAULTS if re.search(fault.pattern, message)), None)


def _telling_line(lines: list[str]) -> str:
    """Return the line of a traceback that names the error, else the first line."""
    for line in reversed(lines):
        if re.match(r"^[\w.]*(Error|Exception)\b.*:", line):
            return line
    return lines[0] if lines else ""
