"""What a Spark server's Java is doing, as the process that started it sees it."""

from __future__ import annotations

from typing import Any

from py4j.protocol import Py4JError
from pyspark import SparkContext

_HAS_ENDED = (Py4JError, OSError)
"""How a call into a Java that has just ended fails: py4j lets a refused connection through."""

_SERVICE = "org.apache.spark.sql.connect.service.SparkConnectService$"


def is_up() -> bool:
    """Return whether Java runs, and Spark in it: Spark stops if its cluster gives it up."""
    gateway, context = SparkContext._gateway, SparkContext._active_spark_context
    if gateway is None or context is None or gateway.proc.poll() is not None:
        return False
    try:
        return not context._jsc.sc().isStopped()
    except _HAS_ENDED:
        return False


def is_outgrown(share: float) -> bool:
    """Return whether no session is open and yet more than a share of the heap is in use.

    Java collects its garbage first. False if it has just ended.
    """
    jvm = SparkContext._jvm
    try:
        if jvm is None or not _service().sessionManager().listActiveSessions().isEmpty():
            return False
        jvm.java.lang.System.gc()
        heap = jvm.java.lang.Runtime.getRuntime()
        return bool(heap.totalMemory() - heap.freeMemory() > share * heap.maxMemory())
    except _HAS_ENDED:
        return False


def _service() -> Any:
    """Return the Scala object of Spark Connect; it has no methods for Java."""
    found: Any = SparkContext._jvm
    for name in (*_SERVICE.split("."), "MODULE$"):
        found = getattr(found, name)
    return found
