"""Filling the base tables for development and tests: Arrow tables by COPY, and CSV files.

All tables of a load are one transaction. Samples are made in `mcq_analytics.sample`.
"""

from __future__ import annotations

import csv
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pyarrow as pa
from adbc_driver_manager import Error as AdbcError
from adbc_driver_postgresql import dbapi

from mcq_analytics.errors import McqError, UsageError
from mcq_analytics.facts import IdType
from mcq_analytics.storage.base_tables import BASE_COLUMNS, BaseTables, Role
from mcq_analytics.storage.database import Database
from mcq_analytics.storage.faults import explain, first_line
from mcq_analytics.storage.postponed_indexes import postponed_indexes
from mcq_analytics.storage.selections import quoted
from mcq_analytics.windows import parse_timestamp

LOAD_ORDER = ("questions", "sessions", "answers", "submissions")
ROWS_PER_BATCH = 50_000

_INTEGER_BOUNDS = {IdType.INTEGER: 2**31, IdType.BIGINT: 2**63}
_ARROW_IDS = {
    IdType.INTEGER: pa.int32(),
    IdType.BIGINT: pa.int64(),
    IdType.TEXT: pa.string(),
    IdType.UUID: pa.string(),
}

Progress = Callable[[str, int], None]


def arrow_schema(base: BaseTables, table: str) -> pa.Schema:
    """Return the Arrow schema of a base table as COPY takes it; a uuid is a string."""
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
    base: BaseTables,
    tables: Mapping[str, pa.RecordBatchReader],
    *,
    indexes_last: bool = False,
) -> dict[str, int]:
    """Append rows to base tables by COPY, in one transaction, and return the rows of each.

    Readers have the schema of `arrow_schema`. A failure, in a reader too, leaves nothing behind.
    With `indexes_last` the indexes of empty tables are made after the rows: sooner done, but others
    wait to read them, and a duplicate is found at the end only.
    """
    counts = {}
    schema = database.source_schema
    with dbapi.connect(database.libpq_uri()) as connection, connection.cursor() as cursor:
        for table in LOAD_ORDER:
            if table in tables:
                with postponed_indexes(cursor, schema, table) if indexes_last else nullcontext():
                    counts[table] = _copy(cursor, schema, base, table, tables[table])
        connection.commit()
    return counts


def _copy(
    cursor: dbapi.Cursor, schema: str, base: BaseTables, table: str, rows: pa.RecordBatchReader
) -> int:
    uuids = [
        column
        for column, role in BASE_COLUMNS[table].items()
        if role is Role.ID and base.id_type(table, column) is IdType.UUID
    ]
    if not uuids:
        return int(cursor.adbc_ingest(table, rows, mode="append", db_schema_name=schema))
    # COPY takes a uuid in a form that Arrow has not: rows go through a table of strings.
    landing = f"landing_{table}"
    count = cursor.adbc_ingest(landing, rows, mode="create", temporary=True)
    columns = ", ".join(quoted(column) for column in BASE_COLUMNS[table])
    values = ", ".join(
        f"CAST({quoted(column)} AS uuid)" if column in uuids else quoted(column)
        for column in BASE_COLUMNS[table]
    )
    cursor.execute(
        f"INSERT INTO {quoted(schema, table)} ({columns}) SELECT {values} FROM {quoted(landing)}"
    )
    cursor.execute(f"DROP TABLE {quoted(landing)}")
    return int(count)


def load_csv(
    database: Database, base: BaseTables, directory: Path, progress: Progress | None = None
) -> dict[str, int]:
    """Load `answers.csv`, `questions.csv`, `sessions.csv` and `submissions.csv` (SPEC section 4).

    Each has a header row; times are ISO 8601, UTC unless they carry an offset; empty is null;
    columns that the base tables do not need are passed over. Returns the rows of each table.

    Raises:
        UsageError: the folder or a file is not there.
        McqError: a row is bad; the message names file, line and reason, and nothing is loaded.

    """
    if not directory.is_dir():
        raise UsageError(f"{directory} is not a folder: give the one that holds the CSV files")
    missing = [f"{table}.csv" for table in LOAD_ORDER if not (directory / f"{table}.csv").is_file()]
    if missing:
        raise UsageError(f"{directory} has no {', '.join(missing)}")
    files = {table: CsvFile(directory / f"{table}.csv", table, base) for table in LOAD_ORDER}
    try:
        return copy_base_tables(
            database, base, {table: file.reader(progress) for table, file in files.items()}
        )
    except AdbcError as error:
        for file in files.values():
            if file.failure is not None:
                raise file.failure from None
        for file in files.values():
            refused = file.explain_refusal(error)
            if refused is not None:
                raise refused from None
        raise explain(error, f"loading {directory}") from error


@dataclass
class CsvFile:
    """A CSV file of one base table, read and checked row by row.

    `failure` is the error that stopped the reading: COPY reports it in words of its own.
    """

    path: Path
    table: str
    base: BaseTables
    failure: McqError | None = None

    def reader(self, progress: Progress | None) -> pa.RecordBatchReader:
        """Return the rows as batches of the table's Arrow schema."""
        schema = arrow_schema(self.base, self.table)

        def batches() -> Iterator[pa.RecordBatch]:
            try:
                yield from self._batches(schema, progress)
            except McqError as error:
                self.failure = error
                raise
            except (OSError, UnicodeDecodeError, csv.Error) as error:
                self.failure = McqError(f"{self.path}: {error}; nothing was loaded")
                raise self.failure from error

        return pa.RecordBatchReader.from_batches(schema, batches())

    def explain_refusal(self, error: BaseException) -> McqError | None:
        """Return, for a row that the table refused, the file and line it came from."""
        detail = re.search(r"Key \((\w+)\)=\((.*?)\)", str(error))
        constraint = re.search(r'relation "(\w+)"|on table "(\w+)"|COPY (\w+),', str(error))
        if constraint is None or self.table not in constraint.groups():
            named = re.search(rf'"{self.table}_\w+"', str(error))
            if named is None:
                return None
        if detail is not None and detail.group(1) in BASE_COLUMNS[self.table]:
            column, value = detail.groups()
            lines = [number for number, row in self._rows() if row.get(column) == value]
            if lines:
                return McqError(
                    f"{self.path} line {lines[-1]}: {first_line(error)}; nothing was loaded"
                )
        copied = re.search(r"COPY \w+, line (\d+)", str(error))
        if copied is not None:
            return McqError(
                f"{self.path} line {int(copied.group(1)) + 1}: {first_line(error)}; "
                "nothing was loaded"
            )
        return McqError(f"{self.path}: {first_line(error)}; nothing was loaded")

    def _batches(self, schema: pa.Schema, progress: Progress | None) -> Iterator[pa.RecordBatch]:
        parsers = {
            column: _parser(role, self._id_type(column) if role is Role.ID else None)
            for column, role in BASE_COLUMNS[self.table].items()
        }
        columns: dict[str, list[object]] = {column: [] for column in parsers}
        count = 0
        for line, row in self._rows():
            for column, parse in parsers.items():
                text = row[column]
                try:
                    columns[column].append(parse(text) if text else None)
                except ValueError as error:
                    raise McqError(
                        f"{self.path} line {line}: {column} {error}; nothing was loaded"
                    ) from None
            count += 1
            if count == ROWS_PER_BATCH:
                yield _batch(columns, schema)
                if progress is not None:
                    progress(self.table, count)
                columns, count = {column: [] for column in parsers}, 0
        if count:
            yield _batch(columns, schema)
            if progress is not None:
                progress(self.table, count)

    def _rows(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Yield line number and fields of each row; the line is the one on which the row ends."""
        with self.path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            absent = [column for column in BASE_COLUMNS[self.table] if column not in header]
            if absent:
                raise McqError(
                    f"{self.path} line 1: the header has no {', '.join(absent)}; nothing was loaded"
                )
            for fields in reader:
                if not fields:
                    continue
                if len(fields) != len(header):
                    raise McqError(
                        f"{self.path} line {reader.line_num}: {len(fields)} fields where the "
                        f"header has {len(header)}; nothing was loaded"
                    )
                yield reader.line_num, dict(zip(header, fields, strict=True))

    def _id_type(self, column: str) -> IdType:
        return self.base.id_type(self.table, column)


def _batch(columns: Mapping[str, list[object]], schema: pa.Schema) -> pa.RecordBatch:
    arrays = []
    for field in schema:
        values = columns[field.name]
        if pa.types.is_timestamp(field.type) and field.type.tz is None:
            values = [
                value.replace(tzinfo=None) if isinstance(value, datetime) else None
                for value in values
            ]
        arrays.append(pa.array(values, field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _parser(role: Role, id_type: IdType | None) -> Callable[[str], object]:
    """Return a function that reads a field, or raises ValueError with what is wrong with it."""
    if role is Role.TIME:
        return _time
    if id_type in _INTEGER_BOUNDS:
        bound = _INTEGER_BOUNDS[id_type]
        return lambda text: _number(text, bound)
    if id_type is IdType.UUID:
        return _uuid
    return _text


def _text(text: str) -> str:
    if "\0" in text:
        raise ValueError("holds a NUL character, which PostgreSQL does not store")
    return text


def _time(text: str) -> datetime:
    try:
        return parse_timestamp(text)
    except UsageError as error:
        raise ValueError(str(error)) from None


def _number(text: str, bound: int) -> int:
    if not re.fullmatch(r"\s*[+-]?[0-9]+\s*", text):
        raise ValueError(f"{text!r} is not a whole number")
    number = int(text)
    if not -bound <= number < bound:
        raise ValueError(f"{text!r} is out of the column's range")
    return number


def _uuid(text: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise ValueError(f"{text!r} is not a uuid") from None
