"""A Spark Connect server: one warm Spark for many runs, kept up by this process.

It is a session like that of a run, with Spark's own plugin that serves others. Its Java ends with
this process.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from types import FrameType

import psutil

from mcq_analytics.errors import McqError, UsageError
from mcq_analytics.masking import remember
from mcq_analytics.settings.home import ready_home
from mcq_analytics.settings.spark import SparkSettings
from mcq_analytics.spark.endpoints import Endpoint, forget_endpoint, record_endpoint
from mcq_analytics.spark.java_process import end_session
from mcq_analytics.spark.own_session import start_session
from mcq_analytics.spark.scaling import session_config
from mcq_analytics.spark.server_java import is_outgrown, is_up

logger = logging.getLogger(__name__)

TOKEN_VARIABLE = "SPARK_CONNECT_AUTHENTICATE_TOKEN"  # noqa: S105
LOOPBACK = ("127.0.0.1", "::1", "localhost")

SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_TO_LIVE = 60.0
"""A Java that ends sooner than that is not started again more than `SHORT_LIVES` times in a row."""
SHORT_LIVES = 3

SECONDS_BETWEEN_HEAP_LOOKS = 60.0
HEAP_SHARE = 0.5
"""A Java that holds more of its heap than this without a session is started again."""

_OF_SERVER = {
    "spark.plugins": "org.apache.spark.sql.connect.SparkConnectPlugin",
    # Sessions and queries of runs that were killed.
    "spark.connect.session.manager.defaultSessionTimeout": "10m",
    "spark.connect.session.manager.closedSessionsTombstonesSize": "100",
    "spark.connect.execute.manager.detachedTimeout": "30s",
    "spark.connect.execute.manager.abandonedTombstonesSize": "100",
    # What is shown of the past.
    "spark.connect.ui.retainedSessions": "10",
    "spark.connect.ui.retainedStatements": "20",
    "spark.sql.ui.retainedExecutions": "20",
    "spark.ui.retainedJobs": "100",
    "spark.ui.retainedStages": "100",
    "spark.ui.retainedTasks": "1000",
    "spark.cleaner.periodicGC.interval": "10min",
}


def endpoint_to_serve(host: str, port: int | None, token: str | None) -> Endpoint:
    """Return where a server shall listen: at a free port and with a new token, unless given.

    Raises:
        UsageError: another address than loopback, without a token.

    """
    if token is None and host not in LOOPBACK:
        raise UsageError(
            "whoever reaches a Spark server runs code as its user: set MCQ_SPARK_SERVER_TOKEN to "
            f"listen on {host}"
        )
    return Endpoint(host, port or _free_port(host), token or secrets.token_urlsafe(32))


def server_config(settings: SparkSettings, records: int, endpoint: Endpoint) -> dict[str, str]:
    """Return the settings of a server for runs of up to `records` records."""
    return {
        **session_config(settings, records),
        **_OF_SERVER,
        "spark.connect.grpc.binding.address": endpoint.host,
        "spark.connect.grpc.binding.port": str(endpoint.port),
        **settings.conf,
    }


def serve(
    settings: SparkSettings,
    home: Path,
    endpoint: Endpoint,
    *,
    records: int,
    follow: int | None = None,
    is_warmed: bool = True,
    tell: Callable[[str], None] = logger.warning,
) -> None:
    """Keep a server up until this process is told to end, or the process `follow` has ended.

    Its Java is started again when it ends, and when Spark has come to hold much of its heap: Spark
    keeps something of each session. Each new Java computes generated answers first, beside the
    runs, if it `is_warmed`.

    Raises:
        McqError: another server runs for `home`, the address is taken, or Spark does not start.
        UsageError: the cluster is a server itself.

    """
    if settings.connect is not None:
        raise UsageError(
            f"the Spark cluster {settings.cluster!r} is a Spark server already: set "
            "MCQ_SPARK_CLUSTER to local, or to the cluster that the server shall compute on"
        )
    assert endpoint.token is not None
    remember(endpoint.token)
    os.environ[TOKEN_VARIABLE] = endpoint.token
    followed = psutil.Process(follow) if follow is not None else None
    config = server_config(settings, records, endpoint)
    with _taken(home):
        _require_free(endpoint)
        end = _End()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, end)
        warming = _Warming(home)
        try:

            def start() -> None:
                warming.end()
                start_session(settings, home, config)
                record_endpoint(home, _as_reached(endpoint))
                if is_warmed:
                    warming.start()

            def is_wanted() -> bool:
                return not end.is_told and (followed is None or followed.is_running())

            _keep_up(start, is_wanted, tell)
        except KeyboardInterrupt:
            pass
        finally:
            warming.end()
            forget_endpoint(home)
            end_session()


@contextmanager
def _taken(home: Path) -> Iterator[None]:
    """Lock the folder for one server; the lock ends with the process."""
    with (ready_home(home) / "spark-server.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise McqError(
                f"a Spark server for {home} is already running: use it, stop it, or set MCQ_HOME "
                "to another folder"
            ) from None
        yield


class _End:
    """Handles the signals that end a server: it interrupts what is being done, and is remembered.

    An interrupt in a finalizer is swallowed by Python, and py4j has many.
    """

    def __init__(self) -> None:
        self.is_told = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.is_told = True
        raise KeyboardInterrupt


class _Warming:
    """The process that warms a server; a server that ends does not wait for it."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mcq_analytics.spark.warm_up"],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "MCQ_HOME": str(self._home)},
        )

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def _keep_up(
    start: Callable[[], None], is_wanted: Callable[[], bool], tell: Callable[[str], None]
) -> None:
    short_lives = 0
    while is_wanted():
        started = monotonic()
        start()
        reason = _reason_to_start_again(is_wanted)
        if reason is None:
            return
        short_lives = short_lives + 1 if monotonic() - started < SECONDS_TO_LIVE else 0
        end_session()
        if short_lives == SHORT_LIVES:
            raise McqError(
                f"the Spark server's Java ended {SHORT_LIVES} times within "
                f"{SECONDS_TO_LIVE:.0f} s of its start: see its log"
            )
        tell(f"the Spark server's Java {reason}: it is started again")


def _reason_to_start_again(is_wanted: Callable[[], bool]) -> str | None:
    """Wait until a started Java has to be replaced; None if the server is not wanted any more."""
    looked = monotonic()
    while is_wanted():
        if not is_up():
            return "has ended, or Spark in it"
        if monotonic() - looked > SECONDS_BETWEEN_HEAP_LOOKS:
            if is_outgrown(HEAP_SHARE):
                return f"holds more than {HEAP_SHARE:.0%} of its heap without a session"
            looked = monotonic()
        sleep(SECONDS_BETWEEN_LOOKS)
    return None


def _as_reached(endpoint: Endpoint) -> Endpoint:
    """Return an endpoint as the processes of this machine reach it."""
    host = "127.0.0.1" if endpoint.host == "0.0.0.0" else endpoint.host  # noqa: S104
    return Endpoint(host, endpoint.port, endpoint.token)


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _require_free(endpoint: Endpoint) -> None:
    family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((endpoint.host, endpoint.port))
        except OSError as error:
            raise McqError(
                f"the Spark server cannot listen on {endpoint.host}:{endpoint.port} "
                f"({error.strerror or error}): give another --host or --port"
            ) from error
