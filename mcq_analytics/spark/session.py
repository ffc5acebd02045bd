"""The Spark session of a process: on a server if there is one, else with a Java of its own."""

from __future__ import annotations

import logging
from pathlib import Path
from time import monotonic, sleep

from pyspark.sql import SparkSession

from mcq_analytics.settings.spark import SparkSettings
from mcq_analytics.spark.connect import (
    ServerUnreachableError,
    connect,
    connected_to,
    open_session,
)
from mcq_analytics.spark.early_start import start_in_background, take_over
from mcq_analytics.spark.endpoints import Endpoint, endpoint_of
from mcq_analytics.spark.java_process import end_session
from mcq_analytics.spark.own_session import has_own_java, own_session, start_session
from mcq_analytics.spark.scaling import (
    MILLION,
    QUICK_RECORDS,
    is_quick,
    of_load,
    of_session,
    session_config,
)

logger = logging.getLogger(__name__)

FEW_HOURS = 48
"""A run over so many hours is taken to be small before its rows are counted."""

SECONDS_TO_COME_BACK = 60.0
"""How long a run waits for a server that is started again."""


def spark_session(settings: SparkSettings, home: Path, record_count: int) -> SparkSession:
    """Return the process's Spark session, on a cluster, sized for `record_count` records.

    A new session has `session_config`. It is one on the server that the cluster names, or on the
    one under `home`; else Java is started, and its log and launchers go under `home`. An existing
    session is reused, and only its settings for the load change. Executors and the options of Java
    are fixed when Java starts: a process with several loads asks for the largest first.

    Raises:
        McqError: the server does not answer, there is no Java 17 or newer, or Spark does not start.

    """
    config = session_config(settings, record_count)
    session = _session_that_is_up(record_count)
    if session is None:
        return _begin(settings, home, config)
    for name, value in of_load(config).items():
        session.conf.set(name, value)
    return session


def start_early(settings: SparkSettings, home: Path, hours: int) -> None:
    """Begin a session in the background, for a run over some hours.

    If the load turns out to be of another kind than the hours suggest, Java is started again.
    Errors are raised when the session is needed.
    """
    is_here = settings.cluster == "local" and settings.master is None
    if not is_here and settings.connect is None:
        return
    if has_own_java() or connected_to() is not None:
        return
    config = session_config(settings, 0 if hours <= FEW_HOURS else QUICK_RECORDS + 1)
    start_in_background(config, lambda: _begin(settings, home, config))


def is_remote(session: SparkSession) -> bool:
    """Return whether a session is on a server."""
    return type(session).__module__.startswith("pyspark.sql.connect")


def _begin(settings: SparkSettings, home: Path, config: dict[str, str]) -> SparkSession:
    endpoint = endpoint_of(settings, home)
    if endpoint is None:
        return start_session(settings, home, config)
    try:
        wait = SECONDS_TO_COME_BACK if settings.connect is not None else 0
        return _connect(endpoint, of_session(config), wait)
    except ServerUnreachableError as error:
        if settings.connect is not None:
            raise
        logger.warning("%s; Spark runs in this process", error)
        return start_session(settings, home, config)


def _connect(endpoint: Endpoint, config: dict[str, str], wait: float) -> SparkSession:
    give_up = monotonic() + wait
    while True:
        try:
            return connect(endpoint, config)
        except ServerUnreachableError:
            if monotonic() > give_up:
                raise
        sleep(1)


def _session_that_is_up(record_count: int) -> SparkSession | None:
    """Return the process's session, also one that was started early if it suits a load."""
    early = take_over()
    if early is not None:
        try:
            session = early.session.result()
        except Exception:
            # It is begun again, and its error is raised where it is expected.
            return None
        if not is_remote(session) and is_quick(early.config) and record_count > MILLION:
            # Another start costs less than a Java that optimises nothing.
            end_session()
    return own_session() or open_session()
