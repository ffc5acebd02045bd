"""The base tables as they are found: columns, id types, indexes; and how to make them for a test.

The testing platform owns them (SPEC section 1). Nothing here ever alters one that exists.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import Enum
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    DateTime,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    Uuid,
    inspect,
    text,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine.reflection import ObjectKind
from sqlalchemy.exc import SAWarning
from sqlalchemy.schema import CreateIndex, CreateTable, SetTableComment
from sqlalchemy.types import TypeEngine

from mcq_analytics.errors import McqError
from mcq_analytics.model.facts import IdType

MADE_HERE = "Made by mcq-analytics init-db --base-tables"
"""The comment on the tables that are made here: no others may ever be altered."""
OTHERS_NAMED = 5
"""Of the columns that a base table has beyond ours: one of them may be a missing one, renamed."""


class Role(Enum):
    """What a base column is: an opaque id, a moment, or a text."""

    ID = "id"
    TIME = "time"
    TEXT = "text"


BASE_COLUMNS: Mapping[str, Mapping[str, Role]] = {
    "answers": {
        "answer_id": Role.ID,
        "student_id": Role.ID,
        "question_id": Role.ID,
        "test_id": Role.ID,
        "session_id": Role.ID,
        "submitted_option": Role.TEXT,
        "timestamp": Role.TIME,
    },
    "questions": {"question_id": Role.ID, "correct_option": Role.TEXT},
    "sessions": {"session_id": Role.ID, "expiry_time": Role.TIME},
    "submissions": {
        "student_id": Role.ID,
        "test_id": Role.ID,
        "submit_time": Role.TIME,
        "completion_status": Role.TEXT,
    },
}

WANTED_INDEXES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "answers": (
        ("timestamp",),
        ("student_id", "test_id", "question_id"),
        ("test_id", "question_id"),
        ("session_id",),
    ),
    "questions": (("question_id",),),
    "sessions": (("session_id",),),
    "submissions": (("submit_time",), ("test_id", "student_id")),
}
"""Columns by which runs find rows; an index that starts with them makes an hour cost an hour."""

# The base tables and, down to what stores rows, what views and partitioned tables are made of. The
# rows of a materialized view are its own.
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

# Columns with a collation that is not deterministic, or of a type that compares in its own way; a
# domain is what it is made of.
_LOOSE_COLLATIONS = """
    WITH RECURSIVE columns (name, attname, type, attcollation) AS (
        SELECT c.relname, a.attname, a.atttypid, a.attcollation
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
        WHERE n.nspname = :schema AND c.relname = ANY(:tables)
        UNION ALL
        SELECT c.name, c.attname, t.typbasetype, c.attcollation
        FROM columns c JOIN pg_type t ON t.oid = c.type AND t.typtype = 'd'
    )
    SELECT c.name, c.attname, coalesce('the collation ' || l.collname, 'the type ' || t.typname)
    FROM columns c JOIN pg_type t ON t.oid = c.type
    LEFT JOIN pg_collation l ON l.oid = c.attcollation AND NOT l.collisdeterministic
    WHERE l.oid IS NOT NULL OR t.typname = 'citext'
    ORDER BY c.name, c.attname
"""

_TYPES: Mapping[IdType, TypeEngine[Any]] = {
    IdType.INTEGER: Integer(),
    IdType.BIGINT: BigInteger(),
    IdType.TEXT: Text(),
    IdType.UUID: Uuid(as_uuid=False),
}


@dataclass(frozen=True)
class BaseTables:
    """The four base tables with the columns of SPEC, as reflected, by name.

    `relations` are the oids of all tables and views that they are made of.
    """

    tables: Mapping[str, Table]
    relations: frozenset[int]

    def __getitem__(self, name: str) -> Table:
        return self.tables[name]

    def id_type(self, table: str, column: str) -> IdType:
        """Return the kind of an id column."""
        found = _id_type(self.tables[table].c[column].type)
        assert found is not None  # checked when the tables were inspected
        return found

    def sql_type(self, table: str, column: str) -> TypeEngine[Any]:
        """Return the SQL type of a column, as the base table has it."""
        return self.tables[table].c[column].type


def inspect_base_tables(connection: Connection, schema: str) -> BaseTables:
    """Return the base tables in `schema` after checking all that runs rely on.

    Raises:
        McqError: a table or column is missing, an id or time has an unsupported type, an id has
            types in two tables that cannot be joined, a collation calls different texts equal, or
            a table is in another database; each is named.

    """
    with warnings.catch_warnings():
        # An option may be of a type that SQLAlchemy does not know; so may what we do not read.
        warnings.simplefilter("ignore", SAWarning)
        columns_of = inspect(connection).get_multi_columns(
            schema, filter_names=list(BASE_COLUMNS), kind=ObjectKind.ANY
        )
    tables = {}
    for name, roles in BASE_COLUMNS.items():
        if (schema, name) not in columns_of:
            raise McqError(
                f"the base table {schema}.{name} is missing: create it, point MCQ_SOURCE_SCHEMA "
                "to its schema, or, for development, run mcq-analytics init-db --base-tables"
            )
        found = {column["name"]: column for column in columns_of[schema, name]}
        for column, role in roles.items():
            if column not in found:
                raise McqError(_no_column(f"{schema}.{name}", column, set(found) - set(roles)))
            _check_type(f"{schema}.{name}.{column}", found[column]["type"], role)
        tables[name] = Table(
            name,
            MetaData(),
            *(Column(column, found[column]["type"]) for column in roles),
            schema=schema,
        )
    _check_collations(connection, schema)
    base = BaseTables(tables, base_relations(connection, schema))
    _check_joinable(base, schema)
    return base


def _no_column(table: str, column: str, others: AbstractSet[str]) -> str:
    """Tell of a column that is missing: an empty one in its place would make the facts wrong."""
    has = f", but {', '.join(sorted(others)[:OTHERS_NAMED])}" if others else ""
    return (
        f"the base table {table} has no column {column}{has}: where it was renamed, rename "
        "it back, or offer a view with the old name, and set MCQ_SOURCE_SCHEMA to its schema"
    )


def missing_indexes(connection: Connection, base: BaseTables, schema: str) -> list[str]:
    """Return the statements that make the indexes that runs want and the base tables lack.

    An index serves where its first columns are the wanted ones, in that order; a unique or
    primary key counts.
    """
    inspector = inspect(connection)
    statements = []
    for name, wanted in WANTED_INDEXES.items():
        known = [tuple(index["column_names"]) for index in inspector.get_indexes(name, schema)]
        known.append(tuple(inspector.get_pk_constraint(name, schema)["constrained_columns"]))
        statements += [
            _create_index(base[name], columns, concurrently=True)
            for columns in wanted
            if not any(index[: len(columns)] == columns for index in known)
        ]
    return statements


def create_missing_base_tables(
    connection: Connection, schema: str, id_type: IdType = IdType.BIGINT
) -> list[str]:
    """Create the base tables that are missing, with their indexes, and return their names.

    Their comment marks them as made here. Where some exist already, the others take the id types
    that those have.
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
                    _new_type(role, known_types.get(column) or _TYPES[id_type]),
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


def index_name(table: str, columns: tuple[str, ...]) -> str:
    """Return the name of an index that is made here."""
    return f"{table}_{'_'.join(columns)}_idx"


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


def _id_type(sql_type: TypeEngine[Any]) -> IdType | None:
    return {
        "INTEGER": IdType.INTEGER,
        "BIGINT": IdType.BIGINT,
        "TEXT": IdType.TEXT,
        "VARCHAR": IdType.TEXT,
        "UUID": IdType.UUID,
    }.get(sql_type.__visit_name__.upper())


def _check_type(column: str, sql_type: TypeEngine[Any], role: Role) -> None:
    if role is Role.ID and _id_type(sql_type) is None:
        raise McqError(
            f"the id {column} has the unsupported type {str(sql_type).lower()}: "
            "ids are integer, bigint, text, varchar or uuid; offer it as one of them through a view"
        )
    if role is Role.TIME and sql_type.__visit_name__.upper() not in ("TIMESTAMP", "DATETIME"):
        raise McqError(
            f"{column} has the type {str(sql_type).lower()}: times are timestamptz or timestamp; "
            "offer it as one of them through a view"
        )


def _check_collations(connection: Connection, schema: str) -> None:
    """Refuse a column for whose equality other texts are the same: facts compare by bytes."""
    for table, column, kind in connection.execute(
        text(_LOOSE_COLLATIONS), {"schema": schema, "tables": list(BASE_COLUMNS)}
    ):
        if column in BASE_COLUMNS[table]:
            raise McqError(
                f"{schema}.{table}.{column} is of {kind}, which calls different texts equal: offer "
                'it as CAST(… AS text) COLLATE "C" through a view'
            )


def base_relations(connection: Connection, schema: str) -> frozenset[int]:
    """Return the oids of the tables and views that the base tables are made of.

    Raises:
        McqError: one of them is a foreign table, of which no snapshot can be held.

    """
    found = connection.execute(
        text(_RELATIONS), {"schema": schema, "tables": list(BASE_COLUMNS)}
    ).all()
    for name, _, kind, relation in found:
        if kind == "f":
            raise McqError(
                f"the base table {schema}.{name} stands on the foreign table {relation}, of which "
                "no snapshot can be held: copy it into a table, or a materialized view"
            )
    return frozenset(oid for _, oid, _, _ in found)


def _check_joinable(base: BaseTables, schema: str) -> None:
    """Refuse an id that is, say, a uuid in one table and a text in another."""
    families = {
        IdType.INTEGER: "a number",
        IdType.BIGINT: "a number",
        IdType.TEXT: "a text",
        IdType.UUID: "a uuid",
    }
    for other, column in (
        ("questions", "question_id"),
        ("sessions", "session_id"),
        ("submissions", "student_id"),
        ("submissions", "test_id"),
    ):
        here = families[base.id_type("answers", column)]
        there = families[base.id_type(other, column)]
        if here != there:
            raise McqError(
                f"{column} is {here} in {schema}.answers but {there} in {schema}.{other}: "
                "give it one type, through a view where need be"
            )
