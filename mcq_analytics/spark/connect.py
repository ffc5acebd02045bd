"""Sessions on a Spark Connect server: this process then needs no Java."""

from __future__ import annotations

import atexit
import logging
import os
import socket
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from pyspark.logger import PySparkLogger

from mcq_analytics.errors import McqError
from mcq_analytics.masking import remember, without_secrets
from mcq_analytics.postgres.errors import first_line
from mcq_analytics.spark.endpoints import Endpoint

if TYPE_CHECKING:
    from pyspark.sql import SparkSession
    from pyspark.sql.connect.client import DefaultChannelBuilder

CONNECT_MODE = "SPARK_CONNECT_MODE_ENABLED"
"""The variable by which pyspark's functions know for which kind of session they build columns."""

SECONDS_TO_CONNECT = 5.0
_ANY_SETTING = "spark.sql.shuffle.partitions"

TRIALS = 6
"""Trials of a call that does not reach the server, over some five seconds."""

_open: list[tuple[Endpoint, SparkSession]] = []
"""The session of this process, if it has one, and its server."""


class ServerUnreachableError(McqError):
    """A server does not answer, or refuses the token."""


def connect(endpoint: Endpoint, config: Mapping[str, str]) -> SparkSession:
    """Return a session of its own on a server, with some settings. It ends with the process.

    Raises:
        ServerUnreachableError: the server does not answer, or refuses the token.

    """
    from pyspark.errors import PySparkException  # noqa: PLC0415
    from pyspark.sql.connect.client.retries import DefaultPolicy  # noqa: PLC0415
    from pyspark.sql.connect.session import SparkSession as ConnectSession  # noqa: PLC0415

    remember(endpoint.token)
    # Its handlers end a child process that is forked while a thread asks the server, as when an
    # embedded PostgreSQL is started again. No child of ours uses gRPC without a new program.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    _silence_pyspark()
    _require_listening(endpoint)
    session = ConnectSession.Builder().channelBuilder(_channel(endpoint)).create()
    session.client.set_retry_policies([DefaultPolicy(max_retries=TRIALS, max_backoff=2_000)])
    try:
        for name, value in config.items():
            session.conf.set(name, value)
        assert session.version
    except PySparkException as error:
        # A server that has just been started again may have opened it.
        session.stop()
        raise ServerUnreachableError(_refusal(endpoint, error)) from without_secrets(error)
    os.environ[CONNECT_MODE] = "1"
    found = cast("SparkSession", session)
    if not _open:
        atexit.register(disconnect)
    _open[:] = [(endpoint, found)]
    return found


def connected_to() -> Endpoint | None:
    """Return the server on which this process has a session, which it may have forgotten."""
    return _open[0][0] if _open else None


def open_session() -> SparkSession | None:
    """Return the session that this process has on a server, if that still knows it."""
    for _, session in _open:
        with suppress(Exception):
            # `version` is remembered, and would tell nothing.
            session.conf.get(_ANY_SETTING)
            return session
        disconnect()
    return None


def disconnect() -> None:
    """End the session of this process; what it still computes is cancelled."""
    while _open:
        with suppress(Exception):
            _open.pop()[1].stop()
    os.environ.pop(CONNECT_MODE, None)


def _silence_pyspark() -> None:
    """Leave errors to those who raise them: pyspark would print each, twice and as JSON."""
    PySparkLogger.getLogger("pyspark.sql.connect.logging").setLevel(logging.CRITICAL + 1)
    warnings.filterwarnings("ignore", message=r"\[RETRIES_EXCEEDED\]")


def _require_listening(endpoint: Endpoint) -> None:
    """Connect once: pyspark would try for ten minutes."""
    try:
        socket.create_connection((endpoint.host, endpoint.port), SECONDS_TO_CONNECT).close()
    except OSError as error:
        raise ServerUnreachableError(
            f"the Spark server {endpoint} cannot be reached ({error.strerror or error}): start it "
            "(mcq-analytics spark-server), or check host and port"
        ) from error


def _refusal(endpoint: Endpoint, error: Exception) -> str:
    if "UNAUTHENTICATED" in str(error):
        return (
            f"the Spark server {endpoint} refuses the token: give the one that "
            "MCQ_SPARK_SERVER_TOKEN holds where the server runs"
        )
    return f"the Spark server {endpoint} does not open a session: {first_line(error)}"


def _channel(endpoint: Endpoint) -> DefaultChannelBuilder:
    import grpc  # noqa: PLC0415
    from pyspark.sql.connect.client import DefaultChannelBuilder  # noqa: PLC0415

    class Channel(DefaultChannelBuilder):
        """Sends the token, also over a connection without TLS."""

        def toChannel(self) -> grpc.Channel:  # noqa: N802
            if endpoint.use_tls:
                return self._secure_channel(self.endpoint, grpc.ssl_channel_credentials())
            return self._insecure_channel(self.endpoint)

        def metadata(self) -> Iterable[tuple[str, str]]:
            if endpoint.token is None:
                return super().metadata()
            return [*super().metadata(), ("authorization", f"Bearer {endpoint.token}")]

    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    return Channel(f"sc://{host}:{endpoint.port}")
