"""Reading PostgreSQL into Spark: tasks that yield Arrow batches by binary COPY.

Every reader imports the attempt's exported snapshot. A table is split either by keys (each split
has a range of the staged students' tests) or by the addresses of its rows. `compute.selections` has
the queries. Small windows are read without Spark's tasks, by `compute.inputs`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import (
    DataType,
    IntegerType,
    LongType,
    StringType,
    StructField,
    StructType,
    TimestampType,
)

from mcq_analytics.model.base_tables import BASE_COLUMNS, Role
from mcq_analytics.model.facts import STUDENT_TEST, IdType
from mcq_analytics.postgres.inspection import BaseTables
from mcq_analytics.postgres.task_errors import installed_version, telling_the_driver

if TYPE_CHECKING:
    import pyarrow as pa
    from adbc_driver_manager.dbapi import Cursor

_READ = "mcq_postgres"
SLICE = "touched_slice"
"""Name of the temporary table that holds the keys of a reader."""

_SPARK_IDS: Mapping[IdType, DataType] = {
    IdType.INTEGER: IntegerType(),
    IdType.BIGINT: LongType(),
    IdType.TEXT: StringType(),
    IdType.UUID: StringType(),
}


@dataclass(frozen=True)
class SnapshotRead:
    """Parameters of a read. `url` holds a password.

    `rows_sql` selects the rows. With `keys_sql`, which selects all staged keys and is continued by
    a condition on their addresses, they are those of the keys in `SLICE`. Without it, `rows_sql` is
    continued so itself. `address` is the address of a row in the query that is continued, `blocks`
    how many blocks these rows fill; with no blocks, nothing is split. `setting_sql` prepares the
    planner; `count_sql` records the number of rows of a split (snapshot, input, split, rows).
    `version` is the driver's of this package.
    """

    url: str
    snapshot: str
    input_name: str
    keys_sql: str
    rows_sql: str
    address: str
    blocks: int
    setting_sql: str
    count_sql: str
    version: str | None = field(default_factory=installed_version)

    def load(self, spark: SparkSession, schema: StructType, splits: int) -> DataFrame:
        """Return the rows as a DataFrame. Spark reads them each time it computes the DataFrame.

        A task gets the number of its split. A Python data source would do the same, but Spark
        starts two more processes to plan each.
        """
        count = max(1, min(self.blocks, splits))

        def read(numbers: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            for batch in numbers:
                for index in batch["id"].to_pylist():
                    yield from rows_of(self, Split(index, count))

        # Spark's pages name the step so.
        read.__name__ = f"{_READ}_{self.input_name}"
        return spark.range(0, count, 1, count).mapInArrow(read, schema)


def spark_schema(base: BaseTables, table: str) -> StructType:
    """Return the Spark schema of a base table."""
    return StructType(
        [
            StructField(column, _spark_type(base, table, column, role))
            for column, role in BASE_COLUMNS[table].items()
        ]
    )


def key_schema(base: BaseTables) -> StructType:
    """Return the Spark schema of students' tests."""
    return StructType(
        [StructField(name, _SPARK_IDS[base.student_test_type(name)]) for name in STUDENT_TEST]
    )


def _spark_type(base: BaseTables, table: str, column: str, role: Role) -> DataType:
    if role is Role.TIME:
        return TimestampType()
    if role is Role.TEXT:
        return StringType()
    if column in STUDENT_TEST:
        return _SPARK_IDS[base.student_test_type(column)]
    return _SPARK_IDS[base.id_type(table, column)]


@dataclass(frozen=True)
class Split:
    """One of `count` even ranges of blocks."""

    index: int
    count: int

    def condition(self, address: str, blocks: int) -> str:
        """Return the condition on addresses; the first and the last range have no outer bound."""
        first, end = (blocks * index // self.count for index in (self.index, self.index + 1))
        conditions = []
        if self.index > 0:
            conditions.append(f"{address} >= CAST('({first},0)' AS tid)")
        if self.index < self.count - 1:
            conditions.append(f"{address} < CAST('({end},0)' AS tid)")
        return " AND ".join(conditions) or "true"


def rows_of(read: SnapshotRead, split: Split) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a split, and record how many they are."""
    rows = 0
    condition = split.condition(read.address, read.blocks)
    keys_sql = f"{read.keys_sql} WHERE {condition}" if read.keys_sql else ""
    rows_sql = read.rows_sql if read.keys_sql else f"{read.rows_sql} AND {condition}"
    with (
        telling_the_driver(read.url, read.version),
        reading_snapshot(read.url, read.snapshot, keys_sql) as cursor,
    ):
        if read.setting_sql:
            cursor.execute(read.setting_sql)
        cursor.execute(rows_sql)
        for batch in batches_of(cursor):
            rows += batch.num_rows
            yield batch
        cursor.execute(read.count_sql, (read.snapshot, read.input_name, split.index, rows))
        cursor.connection.commit()


@contextmanager
def reading_snapshot(url: str, snapshot: str, keys_sql: str = "") -> Iterator[Cursor]:
    """Yield a cursor in an exported snapshot, in which `SLICE` has the keys of `keys_sql`, if any.

    Raises:
        adbc_driver_manager.Error: the server cannot be reached, or refuses; also when the snapshot
            has ended with the session that exported it.

    """
    from mcq_analytics.spark.task_connections import connect_task  # noqa: PLC0415

    with connect_task(url) as connection, connection.cursor() as cursor:
        keys = None
        if keys_sql:
            cursor.execute(keys_sql)
            keys = cursor.fetch_arrow_table()
            # The snapshot is older than the staged keys, so it needs a transaction of its own.
            connection.rollback()
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        cursor.execute(f"SET TRANSACTION SNAPSHOT '{snapshot}'")
        if keys is not None:
            put_temporary(cursor, SLICE, keys)
        yield cursor


def batches_of(cursor: Cursor) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a result as they arrive.

    `fetch_record_batch` returns the reader within ADBC's own one, which raises an `OSError` when
    the connection is lost: nobody would try again.

    Raises:
        adbc_driver_manager.Error: the server refuses, or is lost.

    """
    assert cursor._results is not None
    reader = cursor._results.reader
    with suppress(StopIteration):
        while True:
            yield reader.read_next_batch()


def put_temporary(cursor: Cursor, table: str, rows: pa.Table) -> None:
    """Create a temporary table of a reader's own with some rows."""
    cursor.adbc_ingest(table, rows, mode="create", temporary=True)
    cursor.execute(f"ANALYZE {table}")
