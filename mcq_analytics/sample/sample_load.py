"""Adds a generated sample to the base tables, with ids that continue after the existing ones."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc
from adbc_driver_manager import Error as AdbcError
from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

from mcq_analytics.errors import McqError
from mcq_analytics.model.facts import IdType
from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.errors import explain
from mcq_analytics.postgres.identifiers import quoted
from mcq_analytics.postgres.inspection import BaseTables
from mcq_analytics.sample.base_copy import ReportRows, arrow_schema, copy_base_tables
from mcq_analytics.sample.generator import generate_sample
from mcq_analytics.sample.ids import LEAST_DIGITS, numbers_of_uuids

_PLACES = {
    "answer": (("answers", "answer_id"),),
    "student": (("answers", "student_id"), ("submissions", "student_id")),
    "question": (("answers", "question_id"), ("questions", "question_id")),
    "test": (("answers", "test_id"), ("submissions", "test_id")),
    "session": (("answers", "session_id"), ("sessions", "session_id")),
}
"""The columns of each entity's ids. A number may be free in one column and taken in another."""

# The greatest existing number after which a sample still has room, by id type. Texts and uuids
# count up to 18 digits, which a sample never exceeds; longer ones cannot collide with it.
_MOST_DIGITS = 18
_LAST_NUMBERS = {
    IdType.INTEGER: 2**30,
    IdType.BIGINT: 2**63 - 2**40,
    IdType.TEXT: 10**_MOST_DIGITS - 2**40,
    IdType.UUID: 10**_MOST_DIGITS - 2**40,
}
_UUIDS_PER_READ = 100_000


def load_sample(
    database: Database,
    base: BaseTables,
    *,
    students: int,
    start: datetime,
    hours: int,
    seed: int,
    progress: ReportRows | None = None,
) -> dict[str, int]:
    """Add a sample to the base tables by COPY, in one transaction; return the row count of each.

    In empty tables the same arguments give the same rows. If there are rows, the ids continue after
    those of all base tables. The sample covers `hours` hours from `start`.

    Raises:
        UsageError: `students` or `hours` is not positive.
        McqError: a table refuses the rows, or has no room for more ids.

    """
    try:
        with database.engine().connect() as connection:
            first_ids = {
                entity: _next_number(connection, database.source_schema, base, entity)
                for entity in _PLACES
            }
        sample = generate_sample(
            students=students,
            start=start,
            hours=hours,
            seed=seed,
            id_types={entity: base.id_type(*places[0]) for entity, places in _PLACES.items()},
            first_ids=first_ids,
        )
        tables = {
            name: _reader(getattr(sample, name), arrow_schema(base, name), name, progress)
            for name in ("questions", "sessions", "answers", "submissions")
        }
        return copy_base_tables(database, tables, indexes_last=True)
    except (AdbcError, SQLAlchemyError, pa.ArrowInvalid) as error:
        raise explain(error, "generating a sample") from error


def _reader(
    table: pa.Table, schema: pa.Schema, name: str, progress: ReportRows | None
) -> pa.RecordBatchReader:
    """Return batches with the column types of the base table, reported as they are sent."""
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


def _next_number(connection: Connection, schema: str, base: BaseTables, entity: str) -> int:
    """Return the first number after those of all existing ids of an entity.

    Ids of another form than a sample's have no number: they cannot collide with it.
    """
    greatest = 0
    for table, column in _PLACES[entity]:
        name, values = quoted(schema, table), quoted(column)
        id_type = base.id_type(table, column)
        if id_type is IdType.UUID:
            found = _greatest_of_uuids(connection, name, values, entity)
        elif id_type is IdType.TEXT:
            found = _greatest_of_texts(connection, name, values, entity)
        else:
            found = _greatest(connection, f"max({values})", name)
        greatest = max(greatest, found)
    for table, column in _PLACES[entity]:
        id_type = base.id_type(table, column)
        if greatest > _LAST_NUMBERS[id_type]:
            raise McqError(f"{table}.{column} has no room for more ids of the type {id_type.value}")
    return greatest + 1


def _greatest_of_texts(connection: Connection, table: str, column: str, entity: str) -> int:
    """Return the greatest number in the texts of a sample's form; 0 if there are none."""
    digits = f'substring({column} COLLATE "C" FROM :form)'
    form = f"^{entity}-([0-9]{{{LEAST_DIGITS},{_MOST_DIGITS}}})$"
    return _greatest(connection, f"max(CAST({digits} AS bigint))", table, form=form)


def _greatest(connection: Connection, greatest: str, table: str, **values: str) -> int:
    return connection.execute(text(f"SELECT {greatest} FROM {table}"), values).scalar_one() or 0


def _greatest_of_uuids(connection: Connection, table: str, column: str, entity: str) -> int:
    """Return the greatest number behind the uuids of a sample's form; 0 if there are none."""
    rows = connection.execute(
        text(f"SELECT DISTINCT uuid_send({column}) FROM {table} WHERE {column} IS NOT NULL"),
        execution_options={"yield_per": _UUIDS_PER_READ},
    )
    greatest = 0
    for batch in rows.scalars().partitions():
        numbers = numbers_of_uuids(entity, b"".join(batch))
        greatest = max(greatest, int(numbers[numbers < 10**_MOST_DIGITS].max(initial=0)))
    return greatest
