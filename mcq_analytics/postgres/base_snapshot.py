"""A snapshot of the base tables that several sessions read, protected by a lock.

A snapshot alone is not enough: `TRUNCATE`, and an `ALTER TABLE` that rewrites a table, affect older
snapshots too. So the session that exports the snapshot locks the tables first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic, sleep

from sqlalchemy import Connection, text
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError

from mcq_analytics.errors import BaseTablesChangedError
from mcq_analytics.model.base_tables import BASE_COLUMNS
from mcq_analytics.postgres.database import TABLE_LOCK_SECONDS
from mcq_analytics.postgres.errors import LOCK_NOT_AVAILABLE
from mcq_analytics.postgres.identifiers import quoted
from mcq_analytics.postgres.inspection import BaseTables, base_relations, inspect_base_tables

logger = logging.getLogger(__name__)

# Below PostgreSQL's deadlock_timeout of one second: if somebody truncates several base tables in
# another order, we step back first, and the server never cancels their transaction.
_LOCK_TRIAL = "500ms"
_SECONDS_BETWEEN_TRIALS = 0.5

READER_LOCK_TIMEOUT = "10s"
"""Lock timeout of sessions that read in the snapshot. They queue behind a `TRUNCATE` that waits for
our lock, which would be a deadlock: the attempt gives up, and restarts after the `TRUNCATE`."""


@dataclass(frozen=True)
class BaseSnapshot:
    """A snapshot that other sessions can import, and the base tables in it.

    It ends with the session that exported it, and is that of the server that `engine` leads to.
    """

    engine: Engine
    identifier: str
    base: BaseTables
    _holder: Connection
    _schema: str

    def require_unchanged(self) -> None:
        """Check that everything read so far came from this one state.

        Raises:
            sqlalchemy.exc.DBAPIError: the session was lost, and its locks with it.
            BaseTablesChangedError: a partition was attached or detached meanwhile. Our lock does
                not prevent that, and older snapshots see it.

        """
        if base_relations(self._holder, self._schema) != self.base.relations:
            raise BaseTablesChangedError("a partition of a base table came or went during the run")


@contextmanager
def base_snapshot(
    engine: Engine, schema: str, wait: Callable[[Connection], None] = lambda _: None
) -> Iterator[BaseSnapshot]:
    """Hold a snapshot of the base tables in `schema` until the end of the block.

    `wait` returns once the server, if it is a replica, has the state that is needed. Meanwhile
    others can do everything except `TRUNCATE` and most forms of `ALTER TABLE`; on the primary of a
    replica these, too, which the replica then holds back, or ends our sessions.

    Raises:
        McqError: a base table is missing or unsuitable.
        sqlalchemy.exc.DBAPIError: the tables stayed locked for longer than `TABLE_LOCK_SECONDS`, or
            another error of the database.

    """
    with engine.connect() as connection:
        holder = connection.execution_options(isolation_level="READ COMMITTED")
        wait(holder)
        _lock(holder, schema)
        base = inspect_base_tables(holder, schema)
        identifier = holder.execute(text("SELECT pg_export_snapshot()")).scalar_one()
        try:
            yield BaseSnapshot(engine, identifier, base, holder, schema)
        finally:
            # Closing the session releases its locks and its snapshot.
            holder.invalidate()


@contextmanager
def snapshot_connection(engine: Engine, schema: str) -> Iterator[tuple[Connection, BaseTables]]:
    """Yield a connection that reads base tables and facts in one snapshot, and the base tables."""
    with base_snapshot(engine, schema) as snapshot, engine.connect() as plain:
        connection = plain.execution_options(isolation_level="REPEATABLE READ")
        import_snapshot(connection, snapshot.identifier)
        yield connection, snapshot.base


@contextmanager
def connection_in(engine: Engine, identifier: str) -> Iterator[Connection]:
    """Yield a connection with a transaction that reads in an exported snapshot."""
    with engine.connect() as plain:
        connection = plain.execution_options(isolation_level="REPEATABLE READ")
        with connection.begin():
            import_snapshot(connection, identifier)
            yield connection


def import_snapshot(connection: Connection, identifier: str) -> None:
    """Make a `REPEATABLE READ` transaction that has just begun read in an exported snapshot."""
    connection.exec_driver_sql(f"SET TRANSACTION SNAPSHOT '{identifier}'")
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{READER_LOCK_TIMEOUT}'")


def _lock(connection: Connection, schema: str) -> None:
    """Take `ACCESS SHARE` on the base tables and everything under them, if they are views.

    Planning a query takes these locks, also on partitions and materialized views, and on tables
    that only the owner of a view may read.
    """
    tables = ", ".join(quoted(schema, name) for name in BASE_COLUMNS)
    give_up = monotonic() + TABLE_LOCK_SECONDS
    warned = False
    while True:
        try:
            connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_TRIAL}'"))
            connection.execute(text(f"EXPLAIN SELECT FROM {tables}"))
            return
        except DBAPIError as error:
            connection.rollback()
            if getattr(error.orig, "pgcode", None) != LOCK_NOT_AVAILABLE:
                inspect_base_tables(connection, schema)  # names an unsuitable table
                raise
            if monotonic() > give_up:
                raise
        if not warned:
            logger.warning("a base table is locked: waiting up to %d s for it", TABLE_LOCK_SECONDS)
            warned = True
        sleep(_SECONDS_BETWEEN_TRIALS)
