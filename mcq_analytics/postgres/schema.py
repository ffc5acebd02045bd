"""Our schema in the database: migrating and checking it.

The tables are defined in `fact_tables`, the migrations in `migrations/versions`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import SetColumnComment, SetTableComment
from sqlalchemy.types import TypeEngine

from mcq_analytics.errors import McqError
from mcq_analytics.model.facts import FACTS, KEY_MEANINGS, STUDENT_TEST
from mcq_analytics.postgres.error_kinds import CHECK_VIOLATION
from mcq_analytics.postgres.fact_tables import fact_tables
from mcq_analytics.postgres.identifiers import quoted
from mcq_analytics.postgres.inspection import SQL_TYPES, BaseTables
from mcq_analytics.postgres.partitions import partition_facts

logger = logging.getLogger(__name__)

_MIGRATION_LOCK = 0x6D63715F616E  # "mcq_an"


def key_types(base: BaseTables) -> dict[str, TypeEngine[Any]]:
    """Return the types of the facts' key columns, which are those of the base tables.

    `submissions.test_id` has an entry of its own: it may be a wider integer than in `answers`. So
    have the ids of a student's test, which are those of both tables.
    """
    types = {name: base.sql_type("answers", name) for name in KEY_MEANINGS}
    types["submissions.test_id"] = base.sql_type("submissions", "test_id")
    for name in STUDENT_TEST:
        types[f"student_test.{name}"] = SQL_TYPES[base.student_test_type(name)]
    return types


def migrate(
    connection: Connection,
    schema: str,
    types: Mapping[str, TypeEngine[Any]],
    partitions: int | None = None,
) -> list[str]:
    """Create our schema or upgrade it, with comments on all tables and columns.

    With `partitions`, the facts of students' tests get so many; returns those that had another
    number. Runs in the caller's transaction; concurrent callers wait for each other.

    Raises:
        McqError: a column of `fact_tables` has no migration, or something rests on a fact that
            should get another number of partitions.

    """
    upgrade(connection, schema, types)
    changed = [] if partitions is None else partition_facts(connection, schema, partitions)
    tables = fact_tables(schema, types).metadata.sorted_tables
    found = _column_types(connection, schema)
    for table in tables:
        for column in table.columns:
            if (table.name, column.name) not in found:
                raise McqError(
                    f"no migration creates {table.name}.{column.name}: add one to "
                    "postgres/migrations/versions"
                )
    for table in tables:
        connection.execute(SetTableComment(table))
        for column in table.columns:
            connection.execute(SetColumnComment(column))
    _validate_constraints(connection, schema)
    return changed


def upgrade(
    connection: Connection,
    schema: str,
    types: Mapping[str, TypeEngine[Any]],
    version: str = "head",
) -> None:
    """Run the migrations up to a version, and nothing else: neither comments nor validation."""
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
    if not inspect(connection).has_schema(schema):
        connection.exec_driver_sql(f"CREATE SCHEMA {quoted(schema)}")
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes.update(connection=connection, schema=schema, key_types=types)
    command.upgrade(config, version)


def _validate_constraints(connection: Connection, schema: str) -> None:
    """Check stored rows against constraints that were added later.

    Rows that break one are kept. The constraint then stays unvalidated: it still refuses new rows,
    and the next call validates it again.
    """
    unchecked = connection.execute(
        text(
            "SELECT c.relname, k.conname, pg_get_expr(k.conbin, k.conrelid) FROM pg_constraint k "
            "JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE n.nspname = :schema AND c.relname = ANY(:facts) AND k.contype = 'c' "
            "AND NOT k.convalidated ORDER BY c.relname, k.conname"
        ),
        {"schema": schema, "facts": [fact.name for fact in FACTS]},
    ).all()
    for table, constraint, condition in unchecked:
        if not _is_satisfied(connection, quoted(schema, table), quoted(constraint)):
            logger.warning(
                "%s.%s has old rows that break %s; new ones are refused. Compute the hours of "
                "these rows again, then run mcq-analytics init-db again",
                *(schema, table, condition),
            )


def _is_satisfied(connection: Connection, table: str, constraint: str) -> bool:
    """Return whether all stored rows satisfy a constraint, which is then marked as valid."""
    try:
        with connection.begin_nested():
            connection.exec_driver_sql(f"ALTER TABLE {table} VALIDATE CONSTRAINT {constraint}")
    except DBAPIError as error:
        if getattr(error.orig, "pgcode", None) != CHECK_VIOLATION:
            raise
        return False
    return True


def require_fact_tables(
    connection: Connection, schema: str, types: Mapping[str, TypeEngine[Any]]
) -> None:
    """Check that our tables and columns exist, and that keys have the types of the base tables.

    Raises:
        McqError: a table or column is missing, or a key has another type; the message says what
            to do.

    """
    expected = fact_tables(schema, types)
    found = _column_types(connection, schema)
    connection.rollback()
    names = {table for table, _ in found}
    for table in expected.metadata.sorted_tables:
        if table.name not in names:
            raise McqError(f"the table {schema}.{table.name} is missing: run mcq-analytics init-db")
        for column in table.columns:
            if (table.name, column.name) not in found:
                raise McqError(
                    f"{schema}.{table.name}.{column.name} is missing: run mcq-analytics init-db"
                )
    for table in (*expected.facts.values(), expected.submissions, expected.hours):
        for key in KEY_MEANINGS.keys() & table.primary_key.columns.keys():
            wanted = table.c[key].type
            has = found[table.name, key]
            if not _same_type(has, wanted):
                raise McqError(
                    f"{schema}.{table.name}.{key} is {has}, but the base tables have "
                    f"{str(wanted).lower()}: move the fact schema aside, run mcq-analytics "
                    "init-db, and compute the facts again"
                )


def _column_types(connection: Connection, schema: str) -> dict[tuple[str, str], str]:
    """Return PostgreSQL's names of the types of all columns in a schema, by table and column."""
    rows = connection.execute(
        text(
            "SELECT c.relname, a.attname, format_type(a.atttypid, NULL) AS type "
            "FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid "
            "JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE n.nspname = :schema AND c.relkind IN ('r', 'p') "
            "AND a.attnum > 0 AND NOT a.attisdropped"
        ),
        {"schema": schema},
    )
    return {(row.relname, row.attname): row.type for row in rows}


def _same_type(data_type: str, wanted: TypeEngine[Any]) -> bool:
    """Compare PostgreSQL's name of a type with ours; text and varchar count as equal."""
    name = wanted.__visit_name__.lower()
    texts = ("text", "varchar", "character varying")
    return data_type == name or (data_type in texts and name in texts)
