"""Connections of Spark's Python workers: a worker does many short tasks, and one after another."""

from __future__ import annotations

import gc
from functools import cache, lru_cache
from typing import cast

import adbc_driver_postgresql
from adbc_driver_manager import AdbcConnection, AdbcDatabase, dbapi


class _StaysOpen:
    """Stands for a database where a connection would close it with itself."""

    def close(self) -> None:
        """Leave it open for the next task."""


def connect_task(url: str) -> dbapi.Connection:
    """Return a connection of a task to the database of a libpq conninfo; close it as any other.

    Raises:
        adbc_driver_manager.Error: the server cannot be reached, or refuses.

    """
    _leave_imports_to_themselves()
    return dbapi.Connection(cast("AdbcDatabase", _StaysOpen()), AdbcConnection(_database(url)))


@lru_cache(maxsize=1)
def _database(url: str) -> AdbcDatabase:
    """Return what knows the server's types, for which it asks once: no session is held."""
    database: AdbcDatabase = adbc_driver_postgresql.connect(url)
    return database


@cache
def _leave_imports_to_themselves() -> None:
    """Spare what is imported: a worker looks for garbage after each task, among all it has."""
    gc.freeze()
