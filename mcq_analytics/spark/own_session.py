"""A Spark session of this process, with a Java of its own."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from py4j.protocol import Py4JError
from pyspark import SparkConf, SparkContext
from pyspark.errors import PySparkException
from pyspark.logger import PySparkLogger
from pyspark.sql import SparkSession

from mcq_analytics.errors import McqError
from mcq_analytics.masking import without_secrets
from mcq_analytics.postgres.errors import first_line
from mcq_analytics.settings.home import ready_home
from mcq_analytics.settings.spark import SparkSettings
from mcq_analytics.spark.connect import CONNECT_MODE
from mcq_analytics.spark.java import ensure_java
from mcq_analytics.spark.java_process import start_java
from mcq_analytics.spark.launchers import python_launcher
from mcq_analytics.spark.scaling import of_java

LOG = "spark.log"
PYTHON = "spark.pyspark.python"


def start_session(settings: SparkSettings, home: Path, config: Mapping[str, str]) -> SparkSession:
    """Start Java and a session on a cluster; its log and launchers go under `home`.

    Raises:
        McqError: there is no Java 17 or newer, or Spark does not start.

    """
    # It may come from a process that had a session on a server.
    os.environ.pop(CONNECT_MODE, None)
    java_home = _prepare(settings, home)
    conf = SparkConf().setAppName(f"mcq_analytics {settings.cluster}").setAll(list(config.items()))
    log = home / LOG
    try:
        # Errors that matter are raised in Python.
        SparkContext(gateway=start_java(of_java(config), log), conf=conf)
        session = SparkSession.builder.getOrCreate()
    except (PySparkException, Py4JError, OSError, RuntimeError) as error:
        raise McqError(
            f"Spark does not start on the cluster {settings.cluster!r} with the Java in "
            f"{java_home}: {first_line(error)}; see {log}"
        ) from without_secrets(error)
    # pyspark would also print every failed query with its Java trace; the error is enough.
    PySparkLogger.getLogger("SQLQueryContextLogger").setLevel(logging.CRITICAL + 1)
    return session


def has_own_java() -> bool:
    """Return whether this process has started a session, or is about to."""
    return SparkContext._active_spark_context is not None


def own_session() -> SparkSession | None:
    """Return the session that this process has started, if any."""
    if not has_own_java():
        return None
    # The active session is one of the thread that made it.
    return SparkSession.builder.getOrCreate()


def _prepare(settings: SparkSettings, home: Path) -> Path:
    """Set the environment variables with which Java and Python workers start; return Java's home.

    Raises:
        McqError: there is no Java 17 or newer.

    """
    java_home = ensure_java(ready_home(home))
    os.environ["JAVA_HOME"] = str(java_home)
    if settings.cluster == "local":
        os.environ.setdefault("PYSPARK_PYTHON", str(python_launcher(home)))
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    else:
        _choose_python(settings, home)
    return java_home


def _choose_python(settings: SparkSettings, home: Path) -> None:
    """Name the Python of the executors, which is also that with which Java plans reads here.

    Java looks for a plain name such as ``python3`` in the PATH of each machine: on executors, of
    the environment that they unpack; here, it must find this one.
    """
    named = settings.conf.get(PYTHON)
    if named is not None:
        os.environ["PYSPARK_PYTHON"] = named
    name = os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    if "/" not in name:
        # A link would not do: Spark gives the workers here the PATH of the executors too, and
        # Python looks there for the place from which it was started.
        folder = str(python_launcher(home, name).parent.absolute())
        path = os.environ.get("PATH", os.defpath).split(os.pathsep)
        os.environ["PATH"] = os.pathsep.join([folder, *(one for one in path if one != folder)])
