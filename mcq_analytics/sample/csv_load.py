"""`load-csv`: four CSV files into the base tables, all or nothing.

Fields are parsed in `csv_fields`, rows are sent by `base_copy`.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
from adbc_driver_manager import Error as AdbcError

from mcq_analytics.errors import McqError, UsageError
from mcq_analytics.model.base_tables import BASE_COLUMNS
from mcq_analytics.model.windows import shown
from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.errors import explain, first_line
from mcq_analytics.postgres.inspection import BaseTables
from mcq_analytics.sample.base_copy import (
    LOAD_ORDER,
    CopyPosition,
    ReportRows,
    arrow_schema,
    copy_base_tables,
)
from mcq_analytics.sample.csv_fields import NUL, as_the_server_writes, parsers
from mcq_analytics.sample.refusals import Refusal, refusal

ROWS_PER_BATCH = 50_000
CHARACTERS_PER_BATCH = 2**25
"""Long texts are sent before they fill the memory, or the 2 GB that an Arrow column holds."""

FIELD_CHARACTERS = 2**31 - 1
"""The most that `csv` takes as a field; PostgreSQL takes 1 GB."""


def load_csv(
    database: Database, base: BaseTables, directory: Path, progress: ReportRows | None = None
) -> dict[str, int]:
    """Load `answers.csv`, `questions.csv`, `sessions.csv` and `submissions.csv`.

    Each has a header row; times are ISO 8601, UTC unless they carry an offset; empty is null;
    columns that the base tables do not need may hold anything (docs/spec.md §4). Returns
    the row count of each table.

    Raises:
        UsageError: the folder or a file does not exist.
        McqError: a row is bad; the message names file, line and reason, and nothing is loaded.

    """
    if not directory.is_dir():
        raise UsageError(f"{directory} is not a folder: give the one that holds the CSV files")
    missing = [f"{table}.csv" for table in LOAD_ORDER if not (directory / f"{table}.csv").is_file()]
    if missing:
        raise UsageError(f"{directory} has no {', '.join(missing)}")
    files = {table: CsvFile(directory / f"{table}.csv", table, base) for table in LOAD_ORDER}
    position = CopyPosition()
    try:
        return copy_base_tables(
            database,
            {table: file.reader(progress) for table, file in files.items()},
            position=position,
        )
    except AdbcError as error:
        for file in files.values():
            if file.failure is not None:
                raise file.failure from None
        refused = refusal(error, position.table)
        if refused is not None and refused.table in files:
            raise files[refused.table].explain_refusal(error, refused) from error
        raise explain(error, f"loading {directory}") from error


@dataclass
class CsvFile:
    """The CSV file of one base table, read and checked row by row.

    `failure` is the error that stopped the reading: COPY replaces it with an error of its own.
    """

    path: Path
    table: str
    base: BaseTables
    failure: McqError | None = None

    def reader(self, progress: ReportRows | None) -> pa.RecordBatchReader:
        """Return the rows as batches in the Arrow schema of the table."""
        schema = arrow_schema(self.base, self.table)

        def batches() -> Iterator[pa.RecordBatch]:
            try:
                for batch in self._batches(schema):
                    yield batch
                    if progress is not None:
                        progress(self.table, batch.num_rows)
            except McqError as error:
                self.failure = error
                raise
            except OSError as error:
                self.failure = McqError(f"{self.path}: {error}; nothing was loaded")
                raise self.failure from error

        return pa.RecordBatchReader.from_batches(schema, batches())

    def explain_refusal(self, error: AdbcError, refused: Refusal) -> McqError:
        """Return the error for a row that the server refused, with its line in the file."""
        line = self._refused_line(refused)
        where = f"{self.path}" if line is None else f"{self.path} line {line}"
        return McqError(f"{where}: {first_line(error)}; nothing was loaded")

    def _refused_line(self, refused: Refusal) -> int | None:
        """Return the line of the refused row; if several have the quoted key, the last of them."""
        if refused.row is not None:
            return next((line for line, _ in islice(self._rows(), refused.row - 1, None)), None)
        columns = refused.key_columns
        if not columns or not set(columns) <= set(BASE_COLUMNS[self.table]):
            return None
        parse = parsers(self.base, self.table)
        found = None
        for line, row in self._rows():
            values = (parse[column](row[column]) for column in columns)
            if refused.quotes(tuple(map(as_the_server_writes, values))):
                found = line
        return found

    def _batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        parse = parsers(self.base, self.table)
        columns: dict[str, list[object]] = {column: [] for column in parse}
        count = characters = 0
        for line, row in self._rows():
            for column, parse_field in parse.items():
                text = row[column]
                characters += len(text)
                try:
                    columns[column].append(parse_field(text))
                except ValueError as error:
                    raise McqError(
                        f"{self.path} line {line}: {column} {error}; nothing was loaded"
                    ) from None
            count += 1
            if count == ROWS_PER_BATCH or characters >= CHARACTERS_PER_BATCH:
                yield _batch(columns, schema)
                columns, count, characters = {column: [] for column in parse}, 0, 0
        if count:
            yield _batch(columns, schema)

    def _rows(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Yield the line on which each row ends, and its fields by column.

        A NUL, and bytes that are not UTF-8, arrive as lone surrogates.
        """
        # The limit is global to the process; there is no other way to read a longer field.
        csv.field_size_limit(FIELD_CHARACTERS)
        with self.path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader = csv.reader((line.replace("\0", NUL) for line in file), strict=True)
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
