"""Errors of PostgreSQL and Spark as users see them: one line, with the remedy, without secrets.

`error_reports` extracts the facts about an error; `error_kinds` decides which fault they mean.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager

from mcq_analytics.errors import BaseTablesChangedError, McqError, SparkServerLostError
from mcq_analytics.masking import mask, without_secrets
from mcq_analytics.postgres.error_kinds import (
    INSUFFICIENT_PRIVILEGE,
    LOCK_NOT_AVAILABLE,
    NO_SPARK_SERVER,
    QUERY_CANCELED,
    Fault,
    fault_of,
)
from mcq_analytics.postgres.error_reports import report_of
from mcq_analytics.postgres.task_errors import Origin, Report

__all__ = [
    "INSUFFICIENT_PRIVILEGE",
    "LOCK_NOT_AVAILABLE",
    "QUERY_CANCELED",
    "explain",
    "explaining",
    "first_line",
    "in_short",
    "is_transient",
]


def first_line(error: BaseException) -> str:
    """Return an error's message in one masked line; PostgreSQL's own message if it has one."""
    return _line(report_of(error)) or type(error).__name__


def in_short(error: BaseException) -> str:
    """Return the fault and the message of an error in one masked line."""
    detail = first_line(error)
    fault = _fault(error)
    return detail if fault is None else f"{fault.what} ({detail})"


def explain(error: BaseException, doing: str) -> McqError:
    """Return the error that users see if PostgreSQL or Spark fails while `doing` something.

    An `McqError` is returned unchanged, except that secrets in it are masked.

    >>> explain(OperationalError(…), "reading the status")
    McqError("reading the status: the server cannot be reached (…): check host and port …")
    """
    if isinstance(error, McqError):
        if mask(str(error)) == str(error):
            return error
        masked = copy.copy(error)
        masked.args = (mask(str(error)),)
        return masked
    fault = _fault(error)
    remedy = f": {fault.remedy}" if fault is not None else ""
    kind = SparkServerLostError if fault is NO_SPARK_SERVER else McqError
    return kind(f"{doing}: {in_short(error)}{remedy}")


@contextmanager
def explaining(doing: str, *kinds: type[Exception]) -> Iterator[None]:
    """Raise errors of some classes (default: all) from the block as `explain` words them.

    No error in the chain of causes holds a secret.

    >>> with explaining("reading the status", SQLAlchemyError):
    ...     connection.execute(statement)

    Raises:
        McqError: the block failed with one of the classes.

    """
    caught: tuple[type[Exception], ...] = (*(kinds or (Exception,)), McqError)
    try:
        yield
    except caught as error:
        explained = explain(error, doing)
        cause = without_secrets(error)
        if explained is error:
            raise
        raise explained from cause


def is_transient(error: BaseException) -> bool:
    """Return whether a failure of PostgreSQL or Spark may be gone a moment later."""
    if isinstance(error, BaseTablesChangedError):
        return True
    fault = _fault(error)
    return fault is not None and fault.transient


def _fault(error: BaseException) -> Fault | None:
    if isinstance(error, McqError):
        return None
    return fault_of(report_of(error))


def _line(report: Report) -> str:
    message = mask(report.message)
    if report.state is not None:
        return " ".join(message.split())
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    reported = re.findall(r"(?:ERROR|FATAL|PANIC):\s+([^\n]+)", message)
    if reported and report.origin in (Origin.CONNECTING, Origin.CONNECTED, Origin.LIBPQ):
        return str(reported[-1])
    return _telling_line(lines)


def _telling_line(lines: list[str]) -> str:
    """Return the line of a traceback that names the error, or else the first line."""
    for line in reversed(lines):
        if re.match(r"^[\w.]*(Error|Exception)\b.*:", line):
            return line
    return lines[0] if lines else ""
