"""Filling the base tables for development and tests: Arrow tables by COPY, and CSV files.

All tables of a load are one transaction. Samples are made in `mcq_analytics.sample.generator`.
"""

from __future__ import annotations

import csv
import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path

import pyarrow as pa
from adbc_driver_manager import Error as AdbcError
from adbc_driver_postgresql import dbapi

from mcq_analytics.errors import McqError, UsageError
from mcq_analytics.model.base_tables import BASE_COLUMNS, Role
from mcq_analytics.model.facts import IdType
from mcq_analytics.model.windows import parse_timestamp, shown
from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.errors import explain, first_line
from mcq_analytics.postgres.inspection import BaseTables
from mcq_analytics.sample.postponed_indexes import postponed_indexes
from mcq_analytics.sample.refusals import Refusal, refusal

LOAD_ORDER = ("questions", "sessions", "answers", "submissions")
ROWS_PER_BATCH = 50_000
CHARACTERS_PER_BATCH = 2**25
"""A batch of long texts is sent before it fills the memory, or the 2 GB of an Arrow column."""

FIELD_CHARACTERS = 2**31 - 1
"""What `csv` takes for a field; PostgreSQL takes 1 GB."""

# Lone surrogates stand for what is no text. No decoder makes this one, nor one below DC80, while a
# NUL would stop the `csv` of Python 3.10 in columns that nobody needs, too.
_NUL = "\udc00"
_NO_TEXT = re.compile("[\ud800-\udfff]")
_UUID = re.compile(r"(?:urn:uuid:)?\{?[0-9a-f]{4}(?:-?[0-9a-f]{4}){7}\}?", re.IGNORECASE)

_INTEGER_BOUNDS = {IdType.INTEGER: 2**31, IdType.BIGINT: 2**63}
_ARROW_IDS = {
    IdType.INTEGER: pa.int32(),
    IdType.BIGINT: pa.int64(),
    IdType.TEXT: pa.string(),
    IdType.UUID: pa.binary(16),
}

Progress = Callable[[str, int], None]


@dataclass
class UnderWay:
    """The table whose COPY is under way, if one is: the server does not always name it."""

    table: str | None = None


def arrow_schema(base: BaseTables, table: str) -> pa.Schema:
    """Return the Arrow schema of a base table as COPY takes it; a uuid is its 16 bytes."""
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
    under_way: UnderWay | None = None,
) -> dict[str, int]:
    """Append rows to base tables by COPY, in one transaction, and return the rows of each.

    Readers have the schema of `arrow_schema`. A failure, in a reader too, leaves nothing behind.
    With `indexes_last` the indexes of empty tables are made after the rows: sooner done, but others
    wait to read them, and a duplicate is found at the end only. `under_way` follows the COPY.
    """
    counts = {}
    at = under_way or UnderWay()
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


def load_csv(
    database: Database, base: BaseTables, directory: Path, progress: Progress | None = None
) -> dict[str, int]:
    """Load `answers.csv`, `questions.csv`, `sessions.csv` and `submissions.csv` (SPEC section 4).

    Each has a header row; times are ISO 8601, UTC unless they carry an offset; empty is null;
    columns that the base tables do not need may hold anything. Returns the rows of each table.

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
    at = UnderWay()
    try:
        return copy_base_tables(
            database,
            {table: file.reader(progress) for table, file in files.items()},
            under_way=at,
        )
    except AdbcError as error:
        for file in files.values():
            if file.failure is not None:
                raise file.failure from None
        refused = refusal(error, at.table)
        if refused is not None and refused.table in files:
            raise files[refused.table].explain_refusal(error, refused) from error
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
            except OSError as error:
                self.failure = McqError(f"{self.path}: {error}; nothing was loaded")
                raise self.failure from error

        return pa.RecordBatchReader.from_batches(schema, batches())

    def explain_refusal(self, error: AdbcError, refused: Refusal) -> McqError:
        """Return the error of a row that the table refused, with the line that it came from."""
        line = self._refused_line(refused)
        where = f"{self.path}" if line is None else f"{self.path} line {line}"
        return McqError(f"{where}: {first_line(error)}; nothing was loaded")

    def _refused_line(self, refused: Refusal) -> int | None:
        """Return the line of a refused row; of several with the quoted key, the last."""
        if refused.row is not None:
            return next((line for line, _ in islice(self._rows(), refused.row - 1, None)), None)
        columns = refused.key_columns
        if not columns or not set(columns) <= set(BASE_COLUMNS[self.table]):
            return None
        parsers = self._parsers()
        found = None
        for line, row in self._rows():
            values = (_parsed(parsers[column], row[column]) for column in columns)
            if refused.quotes(tuple(map(_as_the_server_writes, values))):
                found = line
        return found

    def _parsers(self) -> dict[str, Callable[[str], object]]:
        return {
            column: _parser(
                role,
                self.base.id_type(self.table, column) if role is Role.ID else None,
                zoned=getattr(self.base.sql_type(self.table, column), "timezone", False),
            )
            for column, role in BASE_COLUMNS[self.table].items()
        }

    def _batches(self, schema: pa.Schema, progress: Progress | None) -> Iterator[pa.RecordBatch]:
        parsers = self._parsers()
        columns: dict[str, list[object]] = {column: [] for column in parsers}
        count = characters = 0
        for line, row in self._rows():
            for column, parse in parsers.items():
                text = row[column]
                characters += len(text)
                try:
                    columns[column].append(_parsed(parse, text))
                except ValueError as error:
                    raise McqError(
                        f"{self.path} line {line}: {column} {error}; nothing was loaded"
                    ) from None
            count += 1
            if count == ROWS_PER_BATCH or characters >= CHARACTERS_PER_BATCH:
                yield _batch(columns, schema)
                if progress is not None:
                    progress(self.table, count)
                columns, count, characters = {column: [] for column in parsers}, 0, 0
        if count:
            yield _batch(columns, schema)
            if progress is not None:
                progress(self.table, count)

    def _rows(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Yield line number and fields of each row; the line is the one on which the row ends.

        What is no text in a field, a NUL or bytes that are not UTF-8, is there as lone surrogates.
        """
        # The limit is one for the process; there is no other way to read a longer field.
        csv.field_size_limit(FIELD_CHARACTERS)
        with self.path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader = csv.reader((line.replace("\0", _NUL) for line in file), strict=True)
            begin = 1
            try:
                header = [name.strip() for name in next(reader, [])]
                self._check_header(header)
                begin = reader.line_num + 1
                for fields in reader:
                    if fields:
                        self._check_width(reader.line_num, fields, header)
                        yield reader.line_num, dict(zip(header, fields, strict=True))
                    begin = reader.line_num + 1
            except csv.Error as error:
                raise McqError(
                    f"{self.path} line {begin}: {error} in the row that begins there; "
                    "nothing was loaded"
                ) from None

    def _check_header(self, header: list[str]) -> None:
        absent = [column for column in BASE_COLUMNS[self.table] if column not in header]
        repeated = [name for name, times in Counter(header).items() if name and times > 1]
        if absent:
            raise McqError(
                f"{self.path} line 1: the header has no {', '.join(absent)}; nothing was loaded"
            )
        if repeated:
            raise McqError(
                f"{self.path} line 1: the header has {', '.join(map(shown, repeated))} more than "
                "once; nothing was loaded"
            )

    def _check_width(self, line: int, fields: list[str], header: list[str]) -> None:
        if len(fields) != len(header):
            raise McqError(
                f"{self.path} line {line}: {len(fields)} fields where the header has "
                f"{len(header)}; nothing was loaded"
            )


def _batch(columns: Mapping[str, list[object]], schema: pa.Schema) -> pa.RecordBatch:
    arrays = [pa.array(columns[field.name], field.type) for field in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _parsed(parse: Callable[[str], object], text: str) -> object:
    """Return the value of a field; none is null.

    Raises:
        ValueError: with what is wrong with it.

    """
    if not text.isascii() and _NO_TEXT.search(text):
        if _NUL in text:
            raise ValueError("holds a NUL character, which PostgreSQL does not store")
        raise ValueError("holds bytes that are not UTF-8")
    return parse(text) if text else None


def _parser(role: Role, id_type: IdType | None, *, zoned: bool) -> Callable[[str], object]:
    """Return a function that reads a field, or raises ValueError with what is wrong with it."""
    if role is Role.TIME:
        return lambda text: _time(text, zoned)
    if id_type in _INTEGER_BOUNDS:
        bound = _INTEGER_BOUNDS[id_type]
        return lambda text: _number(text, bound)
    if id_type is IdType.UUID:
        return _uuid
    return str


def _time(text: str, zoned: bool) -> datetime:
    try:
        moment = parse_timestamp(text)
    except UsageError as error:
        raise ValueError(str(error)) from None
    return moment if zoned else moment.replace(tzinfo=None)


def _number(text: str, bound: int) -> int:
    match = re.fullmatch(r"\s*([+-]?)([0-9]+)\s*", text)
    if match is None:
        raise ValueError(f"{shown(text)} is not a whole number")
    digits = match.group(2).lstrip("0") or "0"
    # Python refuses to read thousands of digits, in words of its own.
    number = int(match.group(1) + digits) if len(digits) <= len(str(bound)) else bound
    if not -bound <= number < bound:
        raise ValueError(f"{shown(text)} is out of the column's range")
    return number


def _uuid(text: str) -> bytes:
    if not _UUID.fullmatch(text):
        raise ValueError(f"{shown(text)} is not a uuid")
    return uuid.UUID(text).bytes


def _as_the_server_writes(value: object) -> str:
    """Return a value as it stands in the server's messages, in a session that thinks in UTC."""
    if value is None:
        return "null"
    if isinstance(value, bytes):
        return str(uuid.UUID(bytes=value))
    if isinstance(value, datetime):
        text = value.replace(tzinfo=None).isoformat(" ")
        return (text.rstrip("0") if value.microsecond else text) + ("+00" if value.tzinfo else "")
    return str(value)
