"""Errors of Spark's Python workers: how one is told to the driver, which Spark hands a text alone.

A worker raises a `TaskError`, whose message is one line of JSON; the driver finds that line again.
What the contents mean is in `faults`. Workers import this module: it imports little.
"""

from __future__ import annotations

import json
import re
import traceback
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import PurePath
from types import TracebackType

from mcq_analytics.masking import mask, remember

CONNECTION_FAILURE = "08006"

_OF_LIBPQ = re.compile(
    r"[A-Z_]+: \[libpq\] (?:(Failed to connect: )|Failed to [^:\n]*: |"
    r"(?:PQ\w+\(\)|COPY query) failed: |Execution error \[[^\]\n]*\]: )"
)


class Origin(str, Enum):
    """Where an error that has no SQLSTATE arose, as its class tells."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    LIBPQ = "libpq"
    JAVA = "java"
    WORKER = "worker"
    DISK = "disk"
    ELSEWHERE = "elsewhere"


@dataclass(frozen=True)
class Report:
    """What is known of an error: what it says, the server's SQLSTATE if it has one, else an origin.

    `message` is the server's primary message where there is one. `where` is the place in the code
    of a worker.
    """

    message: str
    state: str | None = None
    origin: Origin = Origin.ELSEWHERE
    where: str | None = None


class TaskError(Exception):
    """A failure in a Python worker; the message is a `Report` as JSON, without any line break.

    What rows hold can be in the JSON alone, where it is escaped.
    """


def lost_connection(message: str) -> TaskError:
    """Return the error of a task that finds its connection lost where the driver said nothing."""
    return _task_error(Report(message, CONNECTION_FAILURE))


class telling_the_driver:  # noqa: N801  (used as a statement)
    """Raise what fails inside as a `TaskError`, without the secrets of a connection string."""

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not isinstance(error, Exception) or isinstance(error, TaskError):
            return
        from psycopg2.extensions import parse_dsn  # noqa: PLC0415  (no task that succeeds needs it)

        parameters = parse_dsn(self._conninfo)
        remember(parameters.get("password"), parameters.get("sslpassword"))
        report = adbc_report(error) or Report(f"{type(error).__name__}: {error}")
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{PurePath(last.filename).name}:{last.lineno} in {last.name}"
        told = Report(mask(report.message), report.state, report.origin, where)
        # The cause, as a text of many lines, might look like another error.
        raise _task_error(told) from None


def _task_error(report: Report) -> TaskError:
    return TaskError(json.dumps(asdict(report)))


def adbc_report(error: BaseException) -> Report | None:
    """Return the report of an error of ADBC, and None of any other."""
    from adbc_driver_manager import Error, OperationalError  # noqa: PLC0415

    if not isinstance(error, Error):
        return None
    details: dict[object, bytes] = dict(error.details)
    primary = details.get(b"PG_DIAG_MESSAGE_PRIMARY")
    message = str(error) if primary is None else primary.decode(errors="replace")
    if error.sqlstate:
        return Report(message, error.sqlstate)
    # The driver has no class for what libpq says, but words of its own before it. What stops a
    # reader of ours, which may be a row, has others.
    found = _OF_LIBPQ.match(message)
    if found is None or not isinstance(error, OperationalError):
        return Report(message)
    origin = Origin.CONNECTING if found[1] else Origin.CONNECTED
    return Report(message[found.end() :], origin=origin)


def told_by_worker(text: str) -> Report | None:
    """Return the report of a `TaskError` in the traceback that Spark hands on, if it is of one.

    In a traceback the first line after the frames, which are indented, names the exception and
    begins its message: whatever stands in a message of several lines comes later.
    """
    _, _, frames = text.partition("Traceback (most recent call last):\n")
    named = next((line for line in frames.splitlines() if not line.startswith(" ")), "")
    start = f"{TaskError.__module__}.{TaskError.__qualname__}: "
    if not named.startswith(start):
        return None
    try:
        told = json.loads(named.removeprefix(start))
        return Report(told["message"], told["state"], Origin(told["origin"]), told["where"])
    except (ValueError, KeyError, TypeError):
        return None
