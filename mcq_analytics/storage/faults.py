"""What went wrong in PostgreSQL or Spark, as one line with the remedy, and never a password."""

from __future__ import annotations

import re

from mcq_analytics.errors import McqError

_REMEDIES = (
    (
        r'relation "[^"]*(etl_metadata|_fact|running_attempt)(_hour)?" does not exist',
        "the fact schema is not there",
        "run mcq-analytics init-db",
    ),
    # A pattern over the message, what happened, and what to do.
    (
        r"password authentication failed|28P01|no password supplied",
        "the password or user is wrong",
        "check the user and password in the database URL",
    ),
    (
        r"no pg_hba\.conf entry|28000",
        "the server does not let this user or host in",
        "check the user in the database URL and the server's pg_hba.conf",
    ),
    (
        r'database "[^"]*" does not exist|3D000',
        "the database does not exist",
        "check the name in the database URL, or create it",
    ),
    (
        r"could not translate host name|Name or service not known",
        "the host is not known",
        "check the host in the database URL",
    ),
    (
        r"[Cc]onnection refused|No such file or directory|timeout expired|No route to host",
        "the server cannot be reached",
        "check host and port in the database URL, and that the server runs",
    ),
    (
        r"No space left on device|53100|DiskFull|could not extend file",
        "the disk is full",
        "free space in the tablespace of the fact schema; the next run of the window loses nothing",
    ),
    (
        r"53300|too many clients|remaining connection slots",
        "the server has no free connection",
        "raise max_connections, or run less at once",
    ),
    (
        r"permission denied|42501",
        "the role may not do this",
        "grant it as in mcq_analytics/storage/roles.sql",
    ),
    (
        r"canceling statement due to lock timeout|55P03",
        "a lock was not free in time",
        "run it again, or raise --lock-timeout",
    ),
    (
        # A snapshot ends with the session that holds it.
        (
            r"terminating connection|connection.*(closed|lost|reset)|closed the connection|"
            r'snapshot "[^"]*" does not exist|invalid snapshot identifier|57P0[123]'
        ),
        "the connection to the server was lost",
        "run it again; nothing was half-written",
    ),
    (
        r"read-only transaction|25006",
        "the server takes no writes",
        "give the URL of the primary, not of a standby",
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


def explain(error: BaseException, doing: str) -> McqError:
    """Return the error that a user sees for a failure of PostgreSQL or Spark while `doing`.

    An `McqError` is returned as it is.
    """
    if isinstance(error, McqError):
        return error
    text = str(error)
    detail = first_line(error)
    for pattern, what, remedy in _REMEDIES:
        if re.search(pattern, text):
            return McqError(f"{doing}: {what} ({detail}): {remedy}")
    return McqError(f"{doing}: {detail}")


def _telling_line(lines: list[str]) -> str:
    """Return the line of a traceback that names the error, else the first line."""
    for line in reversed(lines):
        if re.match(r"^[\w.]*(Error|Exception)\b.*:", line):
            return line
    return lines[0] if lines else ""
