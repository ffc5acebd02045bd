"""What base tables must satisfy before a run reads them: types, collations, matching ids.

`inspection` calls these checks; each names the table or column, and the remedy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.types import TypeEngine

from mcq_analytics.errors import McqError
from mcq_analytics.model.base_tables import BASE_COLUMNS, Role
from mcq_analytics.model.facts import IdType

# Columns whose collation is not deterministic, or whose type compares in its own way. A domain
# counts as its base type.
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


def id_type_of(sql_type: TypeEngine[Any]) -> IdType | None:
    """Return which kind of id a SQL type holds, or None if it is not supported."""
    return {
        "INTEGER": IdType.INTEGER,
        "BIGINT": IdType.BIGINT,
        "TEXT": IdType.TEXT,
        "VARCHAR": IdType.TEXT,
        "UUID": IdType.UUID,
    }.get(sql_type.__visit_name__.upper())


def check_type(column: str, sql_type: TypeEngine[Any], name: str, role: Role) -> None:
    """Refuse an id or time of an unsupported type, by the names of the column and of the type."""
    if role is Role.ID and id_type_of(sql_type) is None:
        raise McqError(
            f"the id {column} has the unsupported type {name}: "
            "ids are integer, bigint, text, varchar or uuid; offer it as one of them through a view"
        )
    if role is Role.TIME and sql_type.__visit_name__.upper() not in ("TIMESTAMP", "DATETIME"):
        raise McqError(
            f"{column} has the type {name}: times are timestamptz or timestamp; "
            "offer it as one of them through a view"
        )


def check_collations(connection: Connection, schema: str) -> None:
    """Refuse a column that treats different texts as equal: facts compare texts by their bytes."""
    for table, column, kind in connection.execute(
        text(_LOOSE_COLLATIONS), {"schema": schema, "tables": list(BASE_COLUMNS)}
    ):
        if column in BASE_COLUMNS[table]:
            raise McqError(
                f"{schema}.{table}.{column} is of {kind}, which treats different texts as equal: "
                'offer it as CAST(… AS text) COLLATE "C" through a view'
            )


def check_joinable(id_type: Callable[[str, str], IdType], schema: str) -> None:
    """Refuse an id that is, for example, a uuid in one table and a text in another.

    `id_type` gives the type of a table's column.
    """
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
        here = families[id_type("answers", column)]
        there = families[id_type(other, column)]
        if here != there:
            raise McqError(
                f"{column} is {here} in {schema}.answers but {there} in {schema}.{other}: "
                "give it one type, through a view if need be"
            )
