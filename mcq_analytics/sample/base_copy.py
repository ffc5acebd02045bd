"""COPY of Arrow batches into the base tables: all tables of a load in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import pyarrow as pa
from adbc_driver_postgresql import dbapi

from mcq_analytics.model.base_tables import BASE_COLUMNS, Role
from mcq_analytics.model.facts import IdType
from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.inspection import BaseTables
from mcq_analytics.sample.postponed_indexes import postponed_indexes

LOAD_ORDER = ("questions", "sessions", "answers", "submissions")

_ARROW_IDS = {
    IdType.INTEGER: pa.int32(),
    IdType.BIGINT: pa.int64(),
    IdType.TEXT: pa.string(),
    IdType.UUID: pa.binary(16),
}

ReportRows = Callable[[str, int], None]
"""Called with a table and the number of rows that were just sent to it."""


@dataclass
class CopyPosition:
    """The table that COPY is writing to, None before and after: errors do not always name it."""

    table: str | None = None


def arrow_schema(base: BaseTables, table: str) -> pa.Schema:
    """Return the Arrow schema in which COPY takes a base table; a uuid is its 16 bytes."""
    fields = []
    for column, role in BASE_COLUMNS[table].items():
        if role is Role.ID:
            kind = _ARROW_IDS[base.id_type(table, column)]
        elif role is Role.TIME:
            zoned = getattr(base.sql_type(table, column), "timezone", False)
            kind = pa.timestamp("us", tz="UTC" if zoned else None)
        else:
            kind = pa.string()
        fields.append(pa.field(column, kind))
    return pa.schema(fields)


def copy_base_tables(
    database: Database,
    tables: Mapping[str, pa.RecordBatchReader],
    *,
    indexes_last: bool = False,
    position: CopyPosition | None = None,
) -> dict[str, int]:
    """Append rows to base tables by COPY, in one transaction, and return the row count of each.

    Readers have the schema of `arrow_schema`. A failure, also in a reader, rolls everything back.
    With `indexes_last`, empty tables get their indexes after their rows: faster, but readers of the
    table wait until the end, and a duplicate key is found only then. `position` follows the COPY.
    """
    counts = {}
    at = position or CopyPosition()
    schema = database.source_schema
    with dbapi.connect(database.conninfo()) as connection, connection.cursor() as cursor:
        for table in LOAD_ORDER:
            if table in tables:
                at.table = table
                with postponed_indexes(cursor, schema, table) if indexes_last else nullcontext():
                    counts[table] = int(
                        cursor.adbc_ingest(
                            table, tables[table], mode="append", db_schema_name=schema
                        )
                    )
        at.table = None
        connection.commit()
    return counts
