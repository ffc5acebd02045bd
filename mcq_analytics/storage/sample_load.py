"""A sample in the base tables: made by `mcq_analytics.sample`, numbered on from what is there."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc
from adbc_driver_manager import Error as AdbcError
from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

from mcq_analytics.errors import McqError
from mcq_analytics.facts import IdType
from mcq_analytics.sample import generate_sample
from mcq_analytics.storage.base_load import Progress, arrow_schema, copy_base_tables
from mcq_analytics.storage.base_tables import BaseTables
from mcq_analytics.storage.database import Database
from mcq_analytics.storage.faults import explain
from mcq_analytics.storage.selections import quoted

_ENTITIES = {
    "answer": ("answers", "answer_id"),
    "student": ("answers", "student_id"),
    "question": ("answers", "question_id"),
    "test": ("answers", "test_id"),
    "session": ("answers", "session_id"),
}


def load_sample(
    database: Database,
    base: BaseTables,
    *,
    students: int,
    start: datetime,
    hours: int,
    seed: int,
    progress: Progress | None = None,
) -> dict[str, int]:
    """Add a sample to the base tables by COPY, in one transaction; return the rows of each.

    In empty tables the same arguments give the same rows; where there are rows, the ids go on
    after them. `students` and `hours` are counts, `start` is the sample's first moment.

    Raises:
        UsageError: `students` or `hours` is not positive.
        McqError: the tables take no such rows.

    """
    try:
        with database.engine().connect() as connection:
            first_ids = {
                entity: _next_number(connection, database.source_schema, base, table, column)
                for entity, (table, column) in _ENTITIES.items()
            }
        sample = generate_sample(
            students=students,
            start=start,
            hours=hours,
            seed=seed,
            id_types={name: base.id_type(*column) for name, column in _ENTITIES.items()},
            first_ids=first_ids,
        )
        tables = {
            name: _reader(getattr(sample, name), arrow_schema(base, name), name, progress)
            for name in ("questions", "sessions", "answers", "submissions")
        }
        return copy_base_tables(database, base, tables, indexes_last=True)
    except (AdbcError, SQLAlchemyError, pa.ArrowInvalid) as error:
        raise explain(error, "generating a sample") from error


def _reader(
    table: pa.Table, schema: pa.Schema, name: str, progress: Progress | None
) -> pa.RecordBatchReader:
    """Give a table the column types of the base table, in batches that progress counts."""
    arrays: Mapping[str, pa.ChunkedArray] = {
        field.name: (
            pc.local_timestamp(table[field.name])
            if pa.types.is_timestamp(field.type) and field.type.tz is None
            else table[field.name]
        ).cast(field.type)
        for field in schema
    }
    typed = pa.table(arrays, schema=schema)

    def batches() -> object:
        for batch in typed.to_batches(max_chunksize=100_000):
            yield batch
            if progress is not None:
                progress(name, batch.num_rows)

    return pa.RecordBatchReader.from_batches(schema, batches())


def _next_number(
    connection: Connection, schema: str, base: BaseTables, table: str, column: str
) -> int:
    """Return the number of the first id that is free: after the greatest, or after the count."""
    numeric = base.id_type(table, column) in (IdType.INTEGER, IdType.BIGINT)
    newest = f"max({quoted(column)})" if numeric else f"count(DISTINCT {quoted(column)})"
    number = connection.execute(
        text(f"SELECT coalesce({newest}, 0) + 1 FROM {quoted(schema, table)}")
    ).scalar_one()
    if base.id_type(table, column) is IdType.INTEGER and number > 2**30:
        raise McqError(f"{table}.{column} has no room for more ids of the type integer")
    return int(number)
