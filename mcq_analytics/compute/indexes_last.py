"""Creating a table's indexes after a large load, its primary key too: it takes half the time.

Done in the caller's transaction, and only on an empty table that nobody reads at that moment.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from psycopg2.errorcodes import DEPENDENT_OBJECTS_STILL_EXIST, UNDEFINED_OBJECT
from sqlalchemy import Connection, Index, Table, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import AddConstraint

from mcq_analytics.postgres.errors import INSUFFICIENT_PRIVILEGE, LOCK_NOT_AVAILABLE
from mcq_analytics.postgres.identifiers import quoted

_NOT_NOW = (
    LOCK_NOT_AVAILABLE,
    INSUFFICIENT_PRIVILEGE,
    DEPENDENT_OBJECTS_STILL_EXIST,
    UNDEFINED_OBJECT,  # somebody has renamed the primary key
)

# Indexes stay if their owner has given them what our definition does not have.
_ALTERED = """
    SELECT EXISTS (
        SELECT FROM (
            SELECT o.oid AS of_table
            FROM pg_class o JOIN pg_namespace n ON n.oid = o.relnamespace
            WHERE n.nspname = :schema AND o.relname = ANY(:names)
        ) named
        LEFT JOIN pg_inherits h ON h.inhparent = named.of_table
        JOIN pg_class x ON x.oid IN (named.of_table, h.inhrelid)
        JOIN pg_index i ON i.indexrelid = x.oid
        LEFT JOIN pg_constraint c ON c.conindid = x.oid AND c.contype = 'p'
        WHERE (
            x.reltablespace <> 0 OR x.reloptions IS NOT NULL
            OR i.indisclustered OR i.indisreplident OR c.condeferrable
            OR obj_description(x.oid, 'pg_class') IS NOT NULL
            OR obj_description(c.oid, 'pg_constraint') IS NOT NULL
        )
    )
"""


@contextmanager
def indexes_last(connection: Connection, table: Table) -> Iterator[None]:
    """Drop the indexes of an empty table, and create them after the block.

    They stay where that is not possible at once: somebody reads the table, or it is not ours, or
    something else in the database rests on its primary key.
    """
    is_dropped = _drop(connection, table)
    yield
    if is_dropped:
        connection.execute(text("SET LOCAL maintenance_work_mem = '128MB'"))
        connection.execute(AddConstraint(table.primary_key, isolate_from_table=False))
        for index in _indexes(table):
            index.create(connection)


def _indexes(table: Table) -> list[Index]:
    return sorted(table.indexes, key=lambda index: str(index.name))


def _drop(connection: Connection, table: Table) -> bool:
    """Drop the indexes if that can be done at once, and return whether it was."""
    schema = table.schema or "public"
    key = f"{table.name}_pkey"
    names = [str(index.name) for index in _indexes(table)]
    bound = {"schema": schema, "names": [key, *names]}
    if connection.execute(text(_ALTERED), bound).scalar_one():
        return False
    name = quoted(schema, table.name)
    try:
        with connection.begin_nested():
            # Waiting would hold up all who come later, and two who wait could block each other.
            connection.execute(text(f"LOCK TABLE {name} IN ACCESS EXCLUSIVE MODE NOWAIT"))
            connection.execute(text(f"ALTER TABLE {name} DROP CONSTRAINT {quoted(key)}"))
            if names:
                listed = ", ".join(quoted(schema, one) for one in names)
                connection.execute(text(f"DROP INDEX IF EXISTS {listed}"))
    except DBAPIError as error:
        if getattr(error.orig, "pgcode", None) in _NOT_NOW:
            return False
        raise
    return True
