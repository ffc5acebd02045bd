"""Facts of students' tests as several tables each, by hash of the student's test.

One such table is a part. Runs ask the catalogs for the parts, so that an owner may have others than
those that `partition_facts` makes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from psycopg2.errorcodes import DEPENDENT_OBJECTS_STILL_EXIST
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from mcq_analytics.errors import McqError
from mcq_analytics.model.facts import PARTITIONED, STUDENT_TEST
from mcq_analytics.postgres.identifiers import quoted

SECONDS_TO_LOCK = 10
"""Of waiting for those who use the facts. Nobody else gets at them meanwhile."""

_PARTS = """
    SELECT t.name AS table, quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS name,
        pg_get_partition_constraintdef(c.oid) AS holds
    FROM unnest(CAST(:tables AS text[])) AS t (name)
    CROSS JOIN LATERAL pg_partition_tree(CAST(t.name AS regclass)) p
    JOIN pg_class c ON c.oid = p.relid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE p.isleaf ORDER BY c.oid
"""

# What a new table lacks that was made like another: keys, indexes and privileges. The
# definition of an index on a partitioned table leaves out the partitions, which is for restoring.
_REST = (
    """
    SELECT format('ALTER TABLE %s ADD CONSTRAINT %I %s', CAST(conrelid AS regclass), conname,
        pg_get_constraintdef(oid))
    FROM pg_constraint
    WHERE conrelid = CAST(:table AS regclass) AND contype IN ('p', 'u', 'x', 'f')
    ORDER BY contype DESC
    """,
    """
    SELECT replace(pg_get_indexdef(indexrelid), ' ON ONLY ', ' ON ') FROM pg_index
    WHERE indrelid = CAST(:table AS regclass)
        AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)
    """,
    """
    SELECT format('COMMENT ON INDEX %s IS %L', CAST(indexrelid AS regclass),
        obj_description(indexrelid, 'pg_class'))
    FROM pg_index
    WHERE indrelid = CAST(:table AS regclass)
        AND obj_description(indexrelid, 'pg_class') IS NOT NULL
    UNION ALL
    SELECT format('COMMENT ON CONSTRAINT %I ON %s IS %L', conname, CAST(conrelid AS regclass),
        obj_description(oid, 'pg_constraint'))
    FROM pg_constraint
    WHERE conrelid = CAST(:table AS regclass) AND contype IN ('p', 'u', 'x', 'f')
        AND obj_description(oid, 'pg_constraint') IS NOT NULL
    """,
    """
    SELECT format('GRANT %s ON %s TO %s%s', a.privilege_type, CAST(c.oid AS regclass),
        CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END,
        CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
    FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) a
    WHERE c.oid = CAST(:table AS regclass) AND a.grantee <> c.relowner
    """,
)
# What would be lost with the former table, of it and its partitions.
_WITHOUT_REPLACEMENT = """
    WITH t AS (
        SELECT CAST(:table AS regclass) AS of
        UNION SELECT relid FROM pg_partition_tree(CAST(:table AS regclass))
    )
    SELECT 'the trigger ' || tgname FROM pg_trigger JOIN t ON tgrelid = t.of WHERE NOT tgisinternal
    UNION SELECT 'the rule ' || rulename FROM pg_rewrite JOIN t ON ev_class = t.of
    UNION SELECT 'the policy ' || polname FROM pg_policy JOIN t ON polrelid = t.of
    UNION SELECT 'row level security' FROM pg_class c JOIN t ON c.oid = t.of WHERE relrowsecurity
    UNION SELECT 'a place in the publication ' || pubname
    FROM pg_publication_rel JOIN t ON prrelid = t.of JOIN pg_publication p ON p.oid = prpubid
    UNION SELECT 'privileges on the column ' || attname
    FROM pg_attribute JOIN t ON attrelid = t.of WHERE attacl IS NOT NULL
    UNION SELECT 'a statistics target of the column ' || attname
    FROM pg_attribute JOIN t ON attrelid = t.of WHERE attnum > 0 AND attstattarget >= 0
    UNION SELECT 'a place in another tablespace'
    FROM pg_class c LEFT JOIN pg_index ON indexrelid = c.oid JOIN t ON t.of IN (c.oid, indrelid)
    WHERE reltablespace <> 0
    UNION SELECT 'storage parameters' FROM pg_class c JOIN t ON c.oid = t.of
    WHERE reloptions IS NOT NULL
    UNION SELECT 'a replica identity' FROM pg_class c JOIN t ON c.oid = t.of
    WHERE relreplident <> 'd'
    UNION SELECT 'an order by CLUSTER' FROM pg_index JOIN t ON indrelid = t.of WHERE indisclustered
    ORDER BY 1
"""
_OWNER_AND_COLUMNS = """
    SELECT pg_get_userbyid(c.relowner),
        string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum) FILTER (WHERE attgenerated = '')
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
    WHERE c.oid = CAST(:table AS regclass) AND a.attnum > 0 AND NOT a.attisdropped
    GROUP BY c.oid
"""


@dataclass(frozen=True)
class Part:
    """A table that holds rows of a fact: its quoted name, and which.

    `holds` is a condition over `student_id` and `test_id`, in the types of the fact, or None if it
    may hold any.
    """

    name: str
    holds: str | None


def parts_of(connection: Connection, tables: Iterable[str]) -> dict[str, tuple[Part, ...]]:
    """Return the tables that hold the rows of each table: itself, or its partitions.

    Names are quoted and qualified.
    """
    parts: dict[str, tuple[Part, ...]] = dict.fromkeys(tables, ())
    for row in connection.execute(text(_PARTS), {"tables": list(parts)}):
        # Other conditions than those of a hash depend on the collation of the fact's column.
        is_hash = row.holds.startswith("satisfies_hash_partition(")
        parts[row.table] += (Part(row.name, row.holds if is_hash else None),)
    return {table: found or (Part(table, None),) for table, found in parts.items()}


def partition_facts(connection: Connection, schema: str, number: int) -> list[str]:
    """Let each fact of students' tests have so many partitions, in the caller's transaction.

    With 1 it is a plain table. Rows, columns, indexes, constraints, comments, owner and privileges
    stay as they are. Nobody can read the facts meanwhile; a transaction whose snapshot is older
    sees no row of them. Returns the names of the facts that had another number.

    Raises:
        McqError: something rests on a fact, such as a view, or it has what a new table would lack,
            such as a trigger.
        sqlalchemy.exc.DBAPIError: somebody used the facts for too long, or the database was lost.

    """
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{SECONDS_TO_LOCK}s'")
    changed = []
    for fact in PARTITIONED:
        table = quoted(schema, fact)
        connection.exec_driver_sql(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        if len(parts_of(connection, [table])[table]) != number:
            _replace(connection, schema, fact, number)
            changed.append(fact)
    return changed


def _replace(connection: Connection, schema: str, fact: str, number: int) -> None:
    """Make a table with so many partitions, and the same otherwise, in place of a fact's."""
    table, made = quoted(schema, fact), quoted(schema, f"{fact}_made")
    bound = {"table": table}

    def refusal(why: str) -> McqError:
        return McqError(
            f"{schema}.{fact} cannot be replaced by a table with another number of partitions, "
            f"{why}: drop that first, and create it again afterwards"
        )

    if without := connection.execute(text(_WITHOUT_REPLACEMENT), bound).scalars().all():
        raise refusal(f"which would lack {', '.join(without)}")
    owner, columns = connection.execute(text(_OWNER_AND_COLUMNS), bound).one()
    rest = [one for query in _REST for one in connection.execute(text(query), bound).scalars()]

    def run(*statements: str) -> None:
        for statement in statements:
            connection.exec_driver_sql(statement.replace("%", "%%"))

    like = f"CREATE TABLE {made} (LIKE {table} INCLUDING ALL EXCLUDING INDEXES)"
    names = {made: fact}
    if number == 1:
        run(like)
    else:
        run(f"{like} PARTITION BY HASH ({', '.join(STUDENT_TEST)})")
        for remainder in range(number):
            part = quoted(schema, f"{fact}_made_p{remainder}")
            names[part] = f"{fact}_p{remainder}"
            values = f"MODULUS {number}, REMAINDER {remainder}"
            run(f"CREATE TABLE {part} PARTITION OF {made} FOR VALUES WITH ({values})")
    run(f"INSERT INTO {made} ({columns}) SELECT {columns} FROM {table}")
    try:
        run(f"DROP TABLE {table}")
    except DBAPIError as error:
        if getattr(error.orig, "pgcode", None) != DEPENDENT_OBJECTS_STILL_EXIST:
            raise
        detail = " ".join(str(error.orig.diag.message_detail).split())  # type: ignore[union-attr]
        raise refusal(f"since something rests on it ({detail})") from error
    for name, final in names.items():
        run(f"ALTER TABLE {name} RENAME TO {quoted(final)}")
        run(f"ALTER TABLE {quoted(schema, final)} OWNER TO {quoted(owner)}")
    run(*rest, f"ANALYZE {table}")
