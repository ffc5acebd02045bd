"""What went wrong in PostgreSQL or Spark, as one line with the remedy, and never a secret.

What is known of an error is found in `error_reports`; which fault that is, in `fault_kinds`.
"""

from __future__ import annotations

import copy
import re
from types import TracebackType

from mcq_analytics.errors import BaseTablesChangedError, McqError
from mcq_analytics.masking import mask, without_secrets
from mcq_analytics.postgres.error_kinds import LOCK_NOT_AVAILABLE, QUERY_CANCELED, Fault, fault_of
from mcq_analytics.postgres.error_reports import report_of
from mcq_analytics.postgres.task_errors import Origin, Report

__all__ = [
    "LOCK_NOT_AVAILABLE",
    "QUERY_CANCELED",
    "explain",
    "explaining",
    "first_line",
    "in_short",
    "is_transient",
]


def first_line(error: BaseException) -> str:
    """Return what an error says, in one masked line: PostgreSQL's own words where it has any."""
    return _line(report_of(error)) or type(error).__name__


def in_short(error: BaseException) -> str:
    """Return what is known of an error in one masked line: the kind of fault, and what it says."""
    detail = first_line(error)
    fault = _fault(error)
    return detail if fault is None else f"{fault.what} ({detail})"


def explain(error: BaseException, doing: str) -> McqError:
    """Return the error that a user sees for a failure of PostgreSQL or Spark while `doing`.

    An `McqError` is returned as it is, but for a secret in it.
    """
    if isinstance(error, McqError):
        if mask(str(error)) == str(error):
            return error
        masked = copy.copy(error)
        masked.args = (mask(str(error)),)
        return masked
    fault = _fault(error)
    remedy = f": {fault.remedy}" if fault is not None else ""
    return McqError(f"{doing}: {in_short(error)}{remedy}")


class explaining:  # noqa: N801  (used as a statement)
    """Raise what fails inside, of some classes, as `explain` tells it; no secret is in a cause."""

    def __init__(self, doing: str, *kinds: type[Exception]) -> None:
        self._doing = doing
        self._kinds = kinds or (Exception,)

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None or not isinstance(error, (*self._kinds, McqError)):
            return
        told = explain(error, self._doing)
        cause = without_secrets(error)
        if told is not error:
            raise told from cause


def is_transient(error: BaseException) -> bool:
    """Return whether a failure of PostgreSQL or Spark is of a kind that passes by itself."""
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
    """Return the line of a traceback that names the error, else the first line."""
    for line in reversed(lines):
        if re.match(r"^[\w.]*(Error|Exception)\b.*:", line):
            return line
    return lines[0] if lines else ""
