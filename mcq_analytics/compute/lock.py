"""The advisory lock of the facts, which lets one attempt at a time compute them; its session."""

from __future__ import annotations

import hashlib
import logging

from sqlalchemy import Connection, text
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from mcq_analytics.errors import LockTimeoutError
from mcq_analytics.postgres.errors import LOCK_NOT_AVAILABLE

logger = logging.getLogger(__name__)


class LockSession:
    """The database session that holds the lock; its attempt also writes and commits in it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection: Connection | None = None

    @property
    def is_open(self) -> bool:
        """Whether the session was opened, and not closed since; the server may have ended it."""
        return self._connection is not None

    def open(self) -> None:
        """Connect, without the lock."""
        self._connection = self._engine.connect()

    def take_lock(self, schema: str, lock_seconds: int) -> None:
        """Take the lock of the facts in a schema, waiting up to `lock_seconds` for its holder.

        Raises:
            LockTimeoutError: another session still holds the lock.
            sqlalchemy.exc.DBAPIError: the database refused, or was lost.

        """
        # In a transaction, the wait would hold back vacuum.
        connection = self.connection("AUTOCOMMIT")
        key = lock_key(schema)
        if connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": key}).scalar_one():
            return
        holder = lock_holder(connection, key)
        logger.warning("the facts: waiting for %s, for up to %d s", holder, lock_seconds)
        if lock_seconds > 0 and _wait_for(connection, key, lock_seconds):
            return
        raise LockTimeoutError(
            f"waited {lock_seconds} s for {lock_holder(connection, key)}, which computes the "
            "facts: run it again later, or raise --lock-timeout"
        )

    def connection(self, isolation: str = "READ COMMITTED") -> Connection:
        """Return the session's connection, outside a transaction."""
        assert self._connection is not None
        if self._connection.in_transaction():
            self._connection.rollback()
        return self._connection.execution_options(isolation_level=isolation)

    def is_lost(self) -> bool:
        """Return whether the server has ended the session, and freed the lock with it."""
        assert self._connection is not None
        if self._connection.invalidated:
            return True
        try:
            self.connection().execute(text("SELECT 1"))
        except SQLAlchemyError:
            return True
        return False

    def close(self) -> None:
        """End the session, which frees the lock."""
        if self._connection is not None:
            # Invalidated, so that no pool keeps it, and with it the lock.
            self._connection.invalidate()
            self._connection.close()
            self._connection = None


def lock_key(schema: str) -> int:
    """Return the advisory lock key of the facts in a schema: a signed 64-bit number."""
    digest = hashlib.blake2b(f"mcq_analytics {schema}".encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "big", signed=True)


def lock_holder(connection: Connection, key: int) -> str:
    """Describe the session that holds an advisory lock, as far as our role may see it.

    PostgreSQL hides the start of other roles' sessions from a role without `pg_read_all_stats`,
    and a session need not have an application name.
    """
    row = connection.execute(
        text(
            "SELECT a.pid, a.usename, a.application_name, a.backend_start FROM pg_locks l "
            "JOIN pg_stat_activity a USING (pid) WHERE l.locktype = 'advisory' AND l.granted "
            "AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
            "AND ((CAST(l.classid AS bigint) << 32) | CAST(l.objid AS bigint)) = :key"
        ),
        {"key": key},
    ).first()
    if row is None:
        return "another run"
    name = row.application_name or f"a session of {row.usename or 'another role'}"
    since = f", since {row.backend_start:%H:%M:%S}" if row.backend_start else ""
    return f"{name} (server process {row.pid}{since})"


def _wait_for(connection: Connection, key: int, seconds: int) -> bool:
    """Wait for a lock and return whether it was taken."""
    connection.execute(text(f"SET statement_timeout = 0; SET lock_timeout = '{seconds} s'"))
    try:
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": key})
    except DBAPIError as error:
        if getattr(error.orig, "pgcode", None) != LOCK_NOT_AVAILABLE:
            raise
        return False
    connection.execute(text("RESET statement_timeout; RESET lock_timeout"))
    return True
