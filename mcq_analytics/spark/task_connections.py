"""Database connections of Spark's Python workers, each of which runs many short tasks in turn."""

from __future__ import annotations

import gc
from functools import cache, lru_cache
from typing import cast

import adbc_driver_postgresql
from adbc_driver_manager import AdbcConnection, AdbcDatabase, dbapi


class _StaysOpen:
    """A stand-in for the database, which a connection would otherwise close with itself."""

    def close(self) -> None:
        """Leave it open for the next task."""


def connect_task(url: str) -> dbapi.Connection:
    """Return a task's connection to the database of a libpq conninfo; the caller closes it.

    Raises:
        adbc_driver_manager.Error: the server cannot be reached, or refuses.

    """
    _freeze_imports()
    return dbapi.Connection(cast("AdbcDatabase", _StaysOpen()), AdbcConnection(_database(url)))


@lru_cache(maxsize=2)
def _database(url: str) -> AdbcDatabase:
    """Return the ADBC database, which queries the server's types once and holds no session."""
    database: AdbcDatabase = adbc_driver_postgresql.connect(url)
    return database


@cache
def _freeze_imports() -> None:
    """Freeze imported objects so that the garbage collection after each task skips them."""
    gc.freeze()
