"""How errors of Spark's Python workers reach the driver, to which Spark passes only text.

A worker raises a `TaskError`, whose message is one line of JSON; the driver finds and reads that
line. What the contents mean is in `error_kinds`. Workers import this module, so it imports little.
"""

from __future__ import annotations

import json
import platform
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from enum import Enum
from functools import cache
from pathlib import PurePath

from mcq_analytics.masking import mask, remember

_OF_LIBPQ = re.compile(
    r"[A-Z_]+: \[libpq\] (?:(Failed to connect: )|Failed to [^:\n]*: |"
    r"(?:PQ\w+\(\)|COPY query) failed: |Execution error \[[^\]\n]*\]: )"
)


class Origin(str, Enum):
    """Where an error without a SQLSTATE arose, judged by its class."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    LIBPQ = "libpq"
    JAVA = "java"
    SPARK_SERVER = "spark server"
    WORKER = "worker"
    NO_PACKAGE = "no package"
    OTHER_VERSION = "other version"
    OTHER_PYTHON = "other python"
    DISK = "disk"
    ELSEWHERE = "elsewhere"


_WITHOUT_OUR_CODE = (
    (r"ModuleNotFoundError: No module named ", Origin.NO_PACKAGE),
    (r"ImportError: cannot import name \S+ from '?mcq_analytics", Origin.OTHER_VERSION),
    (r"AttributeError: Can't get attribute \S+ on <module '?mcq_analytics", Origin.OTHER_VERSION),
    (r"\S*PySparkRuntimeError: \[PYTHON_VERSION_MISMATCH\]", Origin.OTHER_PYTHON),
)
"""How a traceback ends in a worker that cannot run our code, and thus raises no `TaskError`."""


@dataclass(frozen=True)
class Report:
    """The facts about an error: its message, and the server's SQLSTATE or else its origin.

    `message` is the server's primary message if there is one. `where` is the place in a worker's
    code.
    """

    message: str
    state: str | None = None
    origin: Origin = Origin.ELSEWHERE
    where: str | None = None


class OtherVersionError(Exception):
    """A worker has another version of this package than the driver."""


class TaskError(Exception):
    """A failure in a Python worker. The message is a `Report` as JSON in one line.

    Contents of rows can only be inside the JSON, where they are escaped.
    """


@cache
def installed_version() -> str | None:
    """Return the version of this package; None where only its files are there."""
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415

    try:
        return version("mcq_analytics")
    except PackageNotFoundError:
        return None


def require_version(of_driver: str | None) -> None:
    """Check that this worker has the driver's version of this package, if both have one.

    Raises:
        OtherVersionError: it has another.

    """
    here = installed_version()
    if None not in (here, of_driver) and here != of_driver:
        raise OtherVersionError(f"{here} on {platform.node()}, {of_driver} where the run is")


@contextmanager
def telling_the_driver(*conninfos: str, version: str | None = None) -> Iterator[None]:
    """Raise errors from the block as a `TaskError`, without the secrets of connection strings.

    `version` is the driver's version of this package: another one here is an error, too.
    """
    try:
        require_version(version)
        yield
    except TaskError:
        raise
    except Exception as error:
        from psycopg2.extensions import parse_dsn  # noqa: PLC0415  (only failing tasks need it)

        for parameters in map(parse_dsn, conninfos):
            remember(parameters.get("password"), parameters.get("sslpassword"))
        report = _report_in_worker(error)
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{PurePath(last.filename).name}:{last.lineno} in {last.name}"
        masked = Report(mask(report.message), report.state, report.origin, where)
        # The text of a cause has many lines, one of which might look like another error.
        raise _task_error(masked) from None


def _task_error(report: Report) -> TaskError:
    return TaskError(json.dumps(asdict(report)))


def _report_in_worker(error: Exception) -> Report:
    if isinstance(error, OtherVersionError):
        return Report(str(error), origin=Origin.OTHER_VERSION)
    found = adbc_report(error)
    if found is None:
        return Report(f"{type(error).__name__}: {error}")
    if found.origin is Origin.CONNECTING:
        # The database may be out of reach from this machine only.
        return replace(found, message=f"from {platform.node()}: {found.message}")
    return found


def adbc_report(error: BaseException) -> Report | None:
    """Return the report of an ADBC error, or None for any other error."""
    from adbc_driver_manager import Error, OperationalError  # noqa: PLC0415

    if not isinstance(error, Error):
        return None
    details: dict[object, bytes] = dict(error.details)
    primary = details.get(b"PG_DIAG_MESSAGE_PRIMARY")
    message = str(error) if primary is None else primary.decode(errors="replace")
    if error.sqlstate:
        return Report(message, error.sqlstate)
    # The driver has no class for libpq's messages, but puts words of its own before them. Errors of
    # our readers, which may quote a row, begin differently.
    found = _OF_LIBPQ.match(message)
    if found is None or not isinstance(error, OperationalError):
        return Report(message)
    origin = Origin.CONNECTING if found[1] else Origin.CONNECTED
    return Report(message[found.end() :], origin=origin)


def worker_report(text: str) -> Report | None:
    """Return the report of the `TaskError` whose traceback Spark passed on, or None.

    A worker that cannot run our code raises errors of its own; their class tells which of them.
    The first line after the indented frames of a traceback names the exception and begins its
    message. Further lines of a message come later, so they cannot pose as a `TaskError`.
    """
    _, _, frames = text.partition("Traceback (most recent call last):\n")
    named = next((line for line in frames.splitlines() if not line.startswith(" ")), "")
    for words, origin in _WITHOUT_OUR_CODE:
        if re.match(words, named):
            return Report(named.partition(": ")[2], origin=origin)
    start = f"{TaskError.__module__}.{TaskError.__qualname__}: "
    if not named.startswith(start):
        return None
    try:
        fields = json.loads(named.removeprefix(start))
        return Report(fields["message"], fields["state"], Origin(fields["origin"]), fields["where"])
    except (ValueError, KeyError, TypeError):
        return None
