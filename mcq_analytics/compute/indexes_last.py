"""Creating a table's further indexes after a large load: it takes half the time.

Done in the caller's transaction, and only on an empty table that nobody reads at that moment.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Index, Table, text
from sqlalchemy.exc import DBAPIError

from mcq_analytics.postgres.errors import INSUFFICIENT_PRIVILEGE, LOCK_NOT_AVAILABLE
from mcq_analytics.postgres.identifiers import quoted

# An index stays if its owner has given it what our definition does not have.
_ALTERED = """
    SELECT EXISTS (
        SELECT FROM pg_class x JOIN pg_namespace n ON n.oid = x.relnamespace
        JOIN pg_index i ON i.indexrelid = x.oid
        WHERE n.nspname = :schema AND x.relname = ANY(:names) AND (
            x.reltablespace <> 0 OR x.reloptions IS NOT NULL OR i.indisclustered
            OR obj_description(x.oid, 'pg_class') IS NOT NULL
        )
    )
"""


@contextmanager
def indexes_last(connection: Connection, table: Table) -> Iterator[None]:
    """Drop the indexes of an empty table but its primary key, and create them after the block.

    They stay where that is not possible at once: somebody reads the table, or it is not ours.
    """
    dropped = _dropped(connection, table)
    yield
    if dropped:
        connection.execute(text("SET LOCAL maintenance_work_mem = '128MB'"))
    for index in dropped:
        index.create(connection)


def _dropped(connection: Connection, table: Table) -> list[Index]:
    """Drop the indexes if that can be done at once, and return them."""
    indexes = sorted(table.indexes, key=lambda index: str(index.name))
    bound = {"schema": table.schema, "names": [index.name for index in indexes]}
    if not indexes or connection.execute(text(_ALTERED), bound).scalar_one():
        return []
    name = quoted(table.schema or "public", table.name)
    try:
        with connection.begin_nested():
            # Waiting would hold up all who come later, and two who wait could block each other.
            connection.execute(text(f"LOCK TABLE {name} IN ACCESS EXCLUSIVE MODE NOWAIT"))
            names = ", ".join(quoted(table.schema or "public", str(one.name)) for one in indexes)
            connection.execute(text(f"DROP INDEX IF EXISTS {names}"))
    except DBAPIError as error:
        if getattr(error.orig, "pgcode", None) in (LOCK_NOT_AVAILABLE, INSUFFICIENT_PRIVILEGE):
            return []
        raise
    return indexes
