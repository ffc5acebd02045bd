"""The base tables on a server: their columns, id types and indexes; and creating missing ones.

The testing platform owns them (docs/spec.md §1). Nothing here alters a table that exists.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BIGINT,
    INTEGER,
    TEXT,
    TIMESTAMP,
    UUID,
    VARCHAR,
    Column,
    Connection,
    DateTime,
    Index,
    MetaData,
    Table,
    Text,
    inspect,
    text,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable, SetTableComment
from sqlalchemy.types import NullType, TypeEngine

from mcq_analytics.errors import McqError
from mcq_analytics.model.base_tables import (
    BASE_COLUMNS,
    MADE_HERE,
    WANTED_INDEXES,
    Role,
    index_name,
)
from mcq_analytics.model.facts import IdType
from mcq_analytics.postgres.base_table_checks import (
    check_collations,
    check_joinable,
    check_type,
    id_type_of,
)
from mcq_analytics.postgres.probes import Probe, probes

OTHERS_NAMED = 5
"""Unknown columns named in the error on a missing column: it may have been renamed to one."""

# The base tables and, recursively, the tables under their views and partitions. A materialized view
# has rows of its own.
_RELATIONS = """
    WITH RECURSIVE stands_on (name, oid, relkind) AS (
        SELECT c.relname, c.oid, c.relkind
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = :schema AND c.relname = ANY(:tables)
        UNION
        SELECT s.name, c.oid, c.relkind
        FROM stands_on s
        CROSS JOIN LATERAL (
            SELECT d.refobjid FROM pg_rewrite r JOIN pg_depend d ON d.objid = r.oid
            WHERE s.relkind = 'v' AND r.ev_class = s.oid
                AND d.classid = CAST('pg_rewrite' AS regclass)
                AND d.refclassid = CAST('pg_class' AS regclass)
            UNION ALL
            SELECT i.inhrelid FROM pg_inherits i WHERE i.inhparent = s.oid
        ) below (oid)
        JOIN pg_class c ON c.oid = below.oid
    )
    SELECT name, CAST(oid AS bigint), CAST(relkind AS text), CAST(CAST(oid AS regclass) AS text)
    FROM stands_on ORDER BY name
"""

_COLUMNS = """
    SELECT c.relname, a.attname, format_type(a.atttypid, NULL) AS type,
        CASE WHEN a.atttypmod > 4 THEN a.atttypmod - 4 END AS length
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    WHERE n.nspname = :schema AND c.relname = ANY(:tables)
    ORDER BY c.relname, a.attnum
"""

# A table's index knows nothing of the rows of tables that inherit from it.
_UNIQUE_IDS = """
    SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_index i ON i.indrelid = c.oid
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[0]
    WHERE n.nspname = :schema AND c.relname || '.' || a.attname = ANY(:ids)
        AND i.indisunique AND i.indisvalid AND i.indnkeyatts = 1 AND i.indpred IS NULL
        AND (c.relkind = 'p' OR NOT c.relhassubclass)
"""

SQL_TYPES: Mapping[IdType, TypeEngine[Any]] = {
    IdType.INTEGER: INTEGER(),
    IdType.BIGINT: BIGINT(),
    IdType.TEXT: TEXT(),
    IdType.UUID: UUID(as_uuid=False),
}

_NAMED: Mapping[str, TypeEngine[Any]] = {
    **{id_type.value: sql_type for id_type, sql_type in SQL_TYPES.items()},
    "timestamp with time zone": TIMESTAMP(timezone=True),
    "timestamp without time zone": TIMESTAMP(),
}
"""The types that ids and times may have, by PostgreSQL's names, beside `character varying`."""


@dataclass(frozen=True)
class BaseTables:
    """The four base tables by name, with the columns of docs/spec.md.

    `relations` are the oids of these tables and of all tables and views under them. `probes` has
    the tables whose rows an index finds by key (see `postgres.probes`), `unique` those of
    `questions` and `sessions` in which an index keeps each id to one row.
    """

    tables: Mapping[str, Table]
    relations: frozenset[int]
    probes: Mapping[str, Probe]
    unique: frozenset[str] = frozenset()

    def __getitem__(self, name: str) -> Table:
        return self.tables[name]

    def id_type(self, table: str, column: str) -> IdType:
        """Return the kind of an id column."""
        found = id_type_of(self.tables[table].c[column].type)
        assert found is not None  # checked when the tables were inspected
        return found

    def student_test_type(self, column: str) -> IdType:
        """Return the type that holds an id of a student's test, in answers and submissions."""
        found = {self.id_type(table, column) for table in ("answers", "submissions")}
        return IdType.BIGINT if len(found) > 1 else found.pop()

    def sql_type(self, table: str, column: str) -> TypeEngine[Any]:
        """Return the SQL type of a column of a base table."""
        return self.tables[table].c[column].type


def inspect_base_tables(connection: Connection, schema: str) -> BaseTables:
    """Return the base tables in `schema`, after checking everything that runs rely on.

    Raises:
        McqError: a table or column is missing, an id or time has an unsupported type, an id cannot
            be joined between two tables, a collation treats different texts as equal, or a table
            is in another database. The message names it.

    """
    tables = _read_tables(connection, schema)
    check_collations(connection, schema)
    base = BaseTables(
        tables,
        base_relations(connection, schema),
        probes(connection, tables),
        _unique_ids(connection, schema),
    )
    check_joinable(base.id_type, schema)
    return base


def _read_tables(connection: Connection, schema: str) -> dict[str, Table]:
    """Return the base tables with the columns that we read, and nothing else known of them.

    Raises:
        McqError: a table or column is missing, or an id or time has an unsupported type.

    """
    columns_of: dict[str, dict[str, Any]] = {}
    for row in connection.execute(text(_COLUMNS), {"schema": schema, "tables": list(BASE_COLUMNS)}):
        columns_of.setdefault(row.relname, {})[row.attname] = row
    tables = {}
    for name, roles in BASE_COLUMNS.items():
        if name not in columns_of:
            raise McqError(
                f"the base table {schema}.{name} is missing: create it, point MCQ_SOURCE_SCHEMA "
                "to its schema, or, for development, run mcq-analytics init-db --base-tables"
            )
        found = columns_of[name]
        columns = []
        for column, role in roles.items():
            if column not in found:
                raise McqError(_no_column(f"{schema}.{name}", column, set(found) - set(roles)))
            sql_type = _type_named(found[column].type, found[column].length)
            check_type(f"{schema}.{name}.{column}", sql_type, found[column].type, role)
            columns.append(Column(column, sql_type))
        tables[name] = Table(name, MetaData(), *columns, schema=schema)
    return tables


def _type_named(name: str, length: int | None) -> TypeEngine[Any]:
    """Return a type by PostgreSQL's name; `NullType` if only options can have it."""
    return VARCHAR(length) if name == "character varying" else _NAMED.get(name, NullType())


def _unique_ids(connection: Connection, schema: str) -> frozenset[str]:
    ids = ["questions.question_id", "sessions.session_id"]
    found = connection.execute(text(_UNIQUE_IDS), {"schema": schema, "ids": ids})
    return frozenset(found.scalars())


def _no_column(table: str, column: str, others: AbstractSet[str]) -> str:
    """Return the error on a missing column: adding an empty one would make the facts wrong."""
    has = f", but {', '.join(sorted(others)[:OTHERS_NAMED])}" if others else ""
    return (
        f"the base table {table} has no column {column}{has}: if it was renamed, rename "
        "it back, or create a view with the old name and set MCQ_SOURCE_SCHEMA to its schema"
    )


def missing_indexes(connection: Connection, base: BaseTables, schema: str) -> list[str]:
    """Return the statements that create the indexes that runs need and the base tables lack.

    An index will do if its first columns are the needed ones, in any order. Unique and primary
    keys count.
    """
    inspector = inspect(connection)
    statements = []
    for name, wanted in WANTED_INDEXES.items():
        known = [tuple(index["column_names"]) for index in inspector.get_indexes(name, schema)]
        known.append(tuple(inspector.get_pk_constraint(name, schema)["constrained_columns"]))
        statements += [
            _create_index(base[name], columns, concurrently=True)
            for columns in wanted
            if not any(set(index[: len(columns)]) == set(columns) for index in known)
        ]
    return statements


def create_missing_base_tables(
    connection: Connection, schema: str, id_type: IdType = IdType.BIGINT
) -> list[str]:
    """Create the missing base tables with their indexes, and return their names.

    Their comment says that we made them. If some tables exist, the new ones take their id types.
    """
    connection.exec_driver_sql(
        f"CREATE SCHEMA IF NOT EXISTS {connection.dialect.identifier_preparer.quote(schema)}"
    )
    inspector = inspect(connection)
    known_types: dict[str, TypeEngine[Any]] = {}
    present = set()
    for name, roles in BASE_COLUMNS.items():
        if inspector.has_table(name, schema):
            present.add(name)
            for column in inspector.get_columns(name, schema):
                if roles.get(column["name"]) is Role.ID:
                    known_types.setdefault(column["name"], column["type"])
    created = []
    for name, roles in BASE_COLUMNS.items():
        if name in present:
            continue
        primary = {"answers": "answer_id", "questions": "question_id", "sessions": "session_id"}
        table = Table(
            name,
            MetaData(),
            *(
                Column(
                    column,
                    _new_type(role, known_types.get(column) or SQL_TYPES[id_type]),
                    primary_key=column == primary.get(name),
                    autoincrement=False,
                )
                for column, role in roles.items()
            ),
            schema=schema,
            comment=MADE_HERE,
        )
        connection.execute(CreateTable(table))
        connection.execute(SetTableComment(table))
        for columns in WANTED_INDEXES[name]:
            if columns != (primary.get(name),):
                connection.exec_driver_sql(_create_index(table, columns, concurrently=False))
        created.append(name)
    return created


def _new_type(role: Role, id_type: TypeEngine[Any]) -> TypeEngine[Any]:
    if role is Role.ID:
        return id_type
    return DateTime(timezone=True) if role is Role.TIME else Text()


def _create_index(table: Table, columns: tuple[str, ...], *, concurrently: bool) -> str:
    index = Index(
        index_name(table.name, columns),
        *(table.c[column] for column in columns),
        postgresql_concurrently=concurrently,
        _table=table,
    )

    return str(CreateIndex(index).compile(dialect=postgresql.dialect()))


def base_relations(connection: Connection, schema: str) -> frozenset[int]:
    """Return the oids of the base tables and of all tables and views under them.

    Raises:
        McqError: one of them is a foreign table, which a snapshot does not cover.

    """
    found = connection.execute(
        text(_RELATIONS), {"schema": schema, "tables": list(BASE_COLUMNS)}
    ).all()
    for name, _, kind, relation in found:
        if kind == "f":
            raise McqError(
                f"the base table {schema}.{name} reads the foreign table {relation}, which a "
                "snapshot does not cover: copy it into a table or a materialized view"
            )
    return frozenset(oid for _, oid, _, _ in found)
