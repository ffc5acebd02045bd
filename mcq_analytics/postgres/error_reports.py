"""What is known of an error: its SQLSTATE, else by its class where it arose. No text decides here.

What that means, and what to do, is in `faults`. An error of Spark is of a text, whose form is its
own: see `task_errors` for that of workers.
"""

from __future__ import annotations

import errno
import re
from typing import Any

import psycopg2
from sqlalchemy.exc import DBAPIError, PendingRollbackError

from mcq_analytics.postgres.task_errors import Origin, Report, adbc_report, told_by_worker

# PySpark has no condition for what fails in Java without one: this is the form that Spark gives
# it, in which what comes before the cause holds no row.
_JAVA_ERROR = re.compile(
    r"\A[^\n]*\n: (?:org\.apache\.spark\.SparkException: Job aborted due to stage failure: "
    r"Task \S+ in stage \S+ failed \d+ times, most recent failure: Lost task \S+ in stage \S+ "
    r"\(TID \d+\) \([^()\n]*\): )?(?P<cause>[^\n]*)"
)
_WORKER_ENDED = "org.apache.spark.SparkException: Python worker exited unexpectedly"
_JAVA_DISK_FULL = "java.io.IOException: No space left on device"
_PYTHON_EXCEPTION = "org.apache.spark.api.python.PythonException"
_CAUSES = 10
"""How deep causes are followed: they may go round in a circle."""

_TRACEBACKS = {"PYTHON_EXCEPTION": "traceback", "PYTHON_DATA_SOURCE_ERROR": "msg"}
"""By the condition of an error that crossed Spark: its parameter that holds a Python traceback."""


def report_of(error: BaseException) -> Report:
    """Return what is known of an error of PostgreSQL's drivers, Spark, or anything else."""
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
        # Drivers of PostgreSQL have errors of their own: this is the way to Java.
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
    # Slow to import; that there is such an error means that it is.
    from pyspark.errors import PySparkException, PythonException  # noqa: PLC0415

    if not isinstance(error, PySparkException):
        return Report(str(error))
    try:
        parameter = _TRACEBACKS.get(error.getCondition() or "")
        parameters = error.getMessageParameters() or {}
    except Exception:  # Java has the parameters, and may have ended since
        parameter, parameters = None, {}
    told = None
    if parameter is not None or isinstance(error, PythonException):
        told = told_by_worker(parameters.get(parameter or "") or str(error))
    return told or Report(str(error))


def _of_java(error: BaseException) -> Report:
    from py4j.protocol import Py4JJavaError, Py4JNetworkError  # noqa: PLC0415

    if isinstance(error, Py4JNetworkError):
        return Report(str(error), origin=Origin.JAVA)
    if not isinstance(error, Py4JJavaError):
        # A Java that is there answers with a trace; the others tell of none that answers.
        answered = "Trace:\n" in str(error)
        return Report(str(error), origin=Origin.ELSEWHERE if answered else Origin.JAVA)
    try:
        return _told_by_cause(error.java_exception) or _of_java_text(str(error))
    except Exception:  # Java is asked for both, and may have ended since
        return Report(type(error).__name__, origin=Origin.JAVA)


def _of_java_text(said: str) -> Report:
    found = _JAVA_ERROR.match(said)
    cause = found["cause"] if found is not None else said
    if cause.startswith(_WORKER_ENDED):
        return Report(cause, origin=Origin.WORKER)
    if cause.startswith(_JAVA_DISK_FULL):
        return Report(cause, origin=Origin.DISK)
    return Report(said)


def _told_by_cause(exception: Any) -> Report | None:
    """Return what a worker told, where an exception of Java has one of a worker as a cause.

    So it is where tasks of several stages fail at once: Spark's error then holds all of them.
    """
    for _ in range(_CAUSES):
        if exception is None:
            return None
        if exception.getClass().getName() == _PYTHON_EXCEPTION:
            return told_by_worker(exception.getMessage())
        exception = exception.getCause()
    return None
