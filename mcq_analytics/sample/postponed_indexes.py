"""Creates the indexes of an empty base table after its rows: a large sample takes half the time.

Only indexes that `init-db --base-tables` created, on tables that carry its mark, are dropped and
created again as they were, in the caller's transaction. Indexes of the owner stay, and so do those
that something depends on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from adbc_driver_postgresql import dbapi

from mcq_analytics.model.base_tables import MADE_HERE, WANTED_INDEXES, index_name
from mcq_analytics.postgres.identifiers import quoted

# An index stays if it has anything that its definition does not include and that would be lost: a
# comment, a tablespace, storage parameters, the mark of CLUSTER or of replication.
_REPEATABLE = """
    SELECT x.relname, k.conname IS NOT NULL,
        coalesce(pg_get_constraintdef(k.oid), pg_get_indexdef(x.oid))
    FROM pg_class t
    JOIN pg_namespace n ON n.oid = t.relnamespace
    JOIN pg_index i ON i.indrelid = t.oid
    JOIN pg_class x ON x.oid = i.indexrelid
    LEFT JOIN pg_constraint k ON k.conindid = x.oid AND k.conrelid = t.oid AND k.contype = 'p'
    WHERE n.nspname = CAST($1 AS text) AND t.relname = CAST($2 AS text)
        AND t.relkind = 'r' AND NOT t.relispartition
        AND obj_description(t.oid, 'pg_class') = CAST($3 AS text)
        AND pg_has_role(t.relowner, 'USAGE') AND has_schema_privilege(n.oid, 'CREATE')
        AND i.indisunique = (k.oid IS NOT NULL)
        AND i.indisvalid AND NOT i.indisclustered AND NOT i.indisreplident
        AND x.reltablespace = 0 AND x.reloptions IS NULL
        AND obj_description(x.oid, 'pg_class') IS NULL
        AND obj_description(k.oid, 'pg_constraint') IS NULL
        AND NOT EXISTS (
            SELECT FROM pg_depend d WHERE d.deptype = 'n' AND (
                d.refclassid = 'pg_class'::regclass AND d.refobjid = x.oid
                OR d.refclassid = 'pg_constraint'::regclass AND d.refobjid = k.oid
            )
        )
    ORDER BY x.oid
"""


@contextmanager
def postponed_indexes(cursor: dbapi.Cursor, schema: str, table: str) -> Iterator[None]:
    """Drop the indexes of an empty base table before the body, and create them again after it.

    A table with rows keeps its indexes. Everything happens in the cursor's transaction; until it
    ends, readers of the table wait.
    """
    name = quoted(schema, table)
    made_again = []
    cursor.execute(f"SELECT EXISTS (SELECT FROM {name})")
    has_rows = cursor.fetchone() == (True,)
    for index, is_key, definition in [] if has_rows else _repeatable(cursor, schema, table):
        if is_key:
            cursor.execute(f"ALTER TABLE {name} DROP CONSTRAINT {quoted(index)}")
            made_again.append(f"ALTER TABLE {name} ADD CONSTRAINT {quoted(index)} {definition}")
        else:
            cursor.execute(f"DROP INDEX {quoted(schema, index)}")
            made_again.append(definition)
    yield
    for statement in made_again:
        cursor.execute(statement)


def _repeatable(cursor: dbapi.Cursor, schema: str, table: str) -> list[tuple[str, bool, str]]:
    """Return for each such index its name, whether it is the primary key, and its definition."""
    of_init_db = {index_name(table, columns) for columns in WANTED_INDEXES[table]}
    of_init_db.add(f"{table}_pkey")
    cursor.execute(_REPEATABLE, (schema, table, MADE_HERE))
    return [row for row in cursor.fetchall() if row[0] in of_init_db]
