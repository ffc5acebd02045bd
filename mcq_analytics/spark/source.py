"""Reading PostgreSQL into Spark: tasks that yield Arrow batches by binary COPY.

Every reader imports the attempt's exported snapshot. A table is split either by keys (each split
has a range of the staged students' tests) or by the addresses of its rows. `compute.selections` has
the queries. Small windows are read without Spark's tasks, by `compute.inputs`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
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
    from adbc_driver_manager.dbapi import Connection, Cursor

_READ = "mcq_postgres"

_SPARK_IDS: Mapping[IdType, DataType] = {
    IdType.INTEGER: IntegerType(),
    IdType.BIGINT: LongType(),
    IdType.TEXT: StringType(),
    IdType.UUID: StringType(),
}


@dataclass(frozen=True)
class SnapshotRead:
    """Parameters of a read. `url` and `staging_url` hold passwords.

    `rows_sql` selects the rows, at `url`. With `keys_sql`, which returns the beginning of that
    query with staged students' tests, from `staging_url`, and is continued by a condition on their
    addresses, they are those of these keys. Without it, `rows_sql` is continued so itself.
    `address` is the address of a row in the query that is continued, `blocks` how many blocks these
    rows fill; with no blocks, nothing is split. `setting_sql` prepares the planner; `count_sql`
    records the number of rows of a split (snapshot, input, split, rows), at `staging_url`.
    `version` is the driver's of this package.
    """

    url: str
    staging_url: str
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
    from mcq_analytics.spark.task_connections import connect_task  # noqa: PLC0415

    rows = 0
    condition = split.condition(read.address, read.blocks)
    with telling_the_driver(read.url, read.staging_url, version=read.version), ExitStack() as stack:
        staging = stack.enter_context(connect_task(read.staging_url))
        if read.keys_sql:
            keys = keys_of(staging, f"{read.keys_sql} WHERE {condition}")
            rows_sql = f"{keys} {read.rows_sql}"
        else:
            rows_sql = f"{read.rows_sql} AND {condition}"
        is_elsewhere = read.url != read.staging_url
        reading = stack.enter_context(connect_task(read.url)) if is_elsewhere else staging
        with reading_snapshot(reading, read.snapshot) as cursor:
            if read.setting_sql:
                cursor.execute(read.setting_sql)
            cursor.execute(rows_sql)
            for batch in batches_of(cursor):
                rows += batch.num_rows
                yield batch
        with staging.cursor() as cursor:
            cursor.execute(read.count_sql, (read.snapshot, read.input_name, split.index, rows))
        staging.commit()


@contextmanager
def reading_snapshot(connection: Connection, snapshot: str) -> Iterator[Cursor]:
    """Yield a cursor of a connection, whose next transaction reads in an exported snapshot.

    Raises:
        adbc_driver_manager.Error: the server refuses, or is lost; also when the snapshot has ended
            with the session that exported it.

    """
    with connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        cursor.execute(f"SET TRANSACTION SNAPSHOT '{snapshot}'")
        yield cursor


def keys_of(connection: Connection, keys_sql: str) -> str:
    """Return the beginning of a query for rows, with the keys that a statement selects.

    They are part of the query, and in no temporary table: a replica cannot have one.
    """
    with connection.cursor() as cursor:
        cursor.execute(keys_sql)
        found = cursor.fetchone()
    # A snapshot is read in a transaction of its own.
    connection.rollback()
    assert found is not None
    return str(found[0])


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
