"""Extracts an error's SQLSTATE or, if it has none, where it arose.

The class of the error decides, not its text. Errors that crossed Spark arrive as text:
`task_errors` reads those of Python workers. Which fault that is, is decided in `error_kinds`.
"""

from __future__ import annotations

import errno
import re
from typing import Any

import psycopg2
from sqlalchemy.exc import DBAPIError, PendingRollbackError

from mcq_analytics.postgres.task_errors import Origin, Report, adbc_report, worker_report

# Java errors without an error condition reach PySpark as text in this form. No row is quoted before
# the cause.
_JAVA_ERROR = re.compile(
    r"\A[^\n]*\n: (?:org\.apache\.spark\.SparkException: Job aborted due to stage failure: "
    r"Task \S+ in stage \S+ failed \d+ times, most recent failure: Lost task \S+ in stage \S+ "
    r"\(TID \d+\) \([^()\n]*\): )?(?P<cause>[^\n]*)"
)
# A Spark Connect server sends the same, but the class of the error apart from its message.
_SERVER_ERROR = re.compile(
    r"\A(?:Job aborted due to stage failure: Task \S+ in stage \S+ failed \d+ times, most recent "
    r"failure: Lost task \S+ in stage \S+ \(TID \d+\) \([^()\n]*\): )?(?P<cause>[^\n]*)"
)
_WORKER_ENDED = "Python worker exited unexpectedly"
_DISK_FULL = "No space left on device"
_CLASSES = r"(?:org\.apache\.spark\.SparkException: |java\.io\.IOException: )?"
_SERVER_ENDS = ("SparkContext was shut down", "Cannot call methods on a stopped SparkContext")
_NO_SESSION = ("INVALID_HANDLE.", "NO_ACTIVE_SESSION", "RESPONSE_ALREADY_RECEIVED")
"""Begin the conditions by which a Spark Connect server, or its client, does not know a session."""
_OTHER_SERVER = "Received incorrect server side session identifier"
_PYTHON_EXCEPTION = "org.apache.spark.api.python.PythonException"
_CAUSES = 10
"""How many causes are followed: they may form a circle."""


def report_of(error: BaseException) -> Report:
    """Return the facts about an error of PostgreSQL's drivers, of Spark, or of anything else."""
    package = type(error).__module__.partition(".")[0]
    found: Report | None = None
    if isinstance(error, DBAPIError):
        found = _of_psycopg2(error.orig or error)
        if found.state is None and error.connection_invalidated:
            found = Report(found.message, origin=Origin.CONNECTED)
    elif isinstance(error, PendingRollbackError):
        found = Report(str(error), origin=Origin.CONNECTED)
    elif isinstance(error, psycopg2.Error):
        found = _of_psycopg2(error)
    elif package == "adbc_driver_manager":
        found = adbc_report(error)
    elif package == "pyspark":
        found = _of_spark(error)
    elif package == "py4j":
        found = _of_java(error)
    elif isinstance(error, ConnectionError):
        # PostgreSQL's drivers have errors of their own: this is the connection to Java.
        found = Report(str(error), origin=Origin.JAVA)
    elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
        found = Report(str(error), origin=Origin.DISK)
    return found or Report(str(error))


def _of_psycopg2(error: BaseException) -> Report:
    if not isinstance(error, psycopg2.Error):
        return Report(str(error))
    message = error.diag.message_primary or str(error)
    if error.pgcode:
        return Report(message, error.pgcode)
    if isinstance(error, psycopg2.InterfaceError):
        return Report(message, origin=Origin.CONNECTED)
    if isinstance(error, psycopg2.OperationalError):
        return Report(message, origin=Origin.LIBPQ)
    return Report(message)


def _of_spark(error: BaseException) -> Report:
    # Slow to import, but an error of PySpark means that it is imported already.
    from pyspark.errors import PySparkException, PythonException  # noqa: PLC0415

    if not isinstance(error, PySparkException):
        return Report(str(error))
    condition = ""
    try:
        condition = error.getCondition() or ""
        parameters = error.getMessageParameters() or {}
    except Exception:  # the parameters are in Java, which may have ended
        parameters = {}
    found = None
    # Some are errors of the client, and not of the server's classes.
    if condition.startswith(_NO_SESSION) or str(error).startswith(_OTHER_SERVER):
        return Report(str(error), origin=Origin.SPARK_SERVER)
    if type(error).__module__.endswith(".connect"):
        return _of_spark_server(error)
    if condition == "PYTHON_EXCEPTION" or isinstance(error, PythonException):
        found = worker_report(parameters.get("traceback") or str(error))
    return found or Report(str(error))


def _of_java(error: BaseException) -> Report:
    from py4j.protocol import Py4JJavaError, Py4JNetworkError  # noqa: PLC0415

    if isinstance(error, Py4JNetworkError):
        return Report(str(error), origin=Origin.JAVA)
    if not isinstance(error, Py4JJavaError):
        # A living Java process answers with a trace; without one, Java has ended.
        answered = "Trace:\n" in str(error)
        return Report(str(error), origin=Origin.ELSEWHERE if answered else Origin.JAVA)
    try:
        return _report_of_cause(error.java_exception) or _of_java_text(str(error))
    except Exception:  # both are in Java, which may have ended
        return Report(type(error).__name__, origin=Origin.JAVA)


def _of_java_text(message: str) -> Report:
    found = _JAVA_ERROR.match(message)
    return _of_cause(found["cause"] if found is not None else message) or Report(message)


def _of_spark_server(error: Any) -> Report:
    from grpc import StatusCode  # noqa: PLC0415

    message = str(error)
    unreached = (StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED)
    if getattr(error, "_grpc_status_code", None) in unreached or any(
        words in message.partition("\n")[0] for words in _SERVER_ENDS
    ):
        details = re.search(r'\bdetails = "([^"\n]*)"', message)
        return Report(details[1] if details else message, origin=Origin.SPARK_SERVER)
    found = _SERVER_ERROR.match(message)
    assert found is not None
    return worker_report(message) or _of_cause(found["cause"]) or Report(message)


def _of_cause(cause: str) -> Report | None:
    """Return the report of an error that Spark itself names, by its first line."""
    if re.match(_CLASSES + _WORKER_ENDED, cause):
        return Report(cause, origin=Origin.WORKER)
    if re.match(_CLASSES + _DISK_FULL, cause):
        return Report(cause, origin=Origin.DISK)
    return None


def _report_of_cause(exception: Any) -> Report | None:
    """Return the report of a worker's error among the causes of a Java exception, if any.

    If tasks of several stages fail at once, Spark raises one error with all of them as causes.
    """
    for _ in range(_CAUSES):
        if exception is None:
            return None
        if exception.getClass().getName() == _PYTHON_EXCEPTION:
            return worker_report(exception.getMessage())
        exception = exception.getCause()
    return None
