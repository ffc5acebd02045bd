"""Reading PostgreSQL into Spark: a data source that yields Arrow batches by binary COPY.

Each split reads its slice of the touched keys from the staging table, and joins the base table to
them in the attempt's exported snapshot. `compute.selections` has the queries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.datasource import DataSource, DataSourceReader, InputPartition
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
from mcq_analytics.model.facts import IdType
from mcq_analytics.postgres.inspection import BaseTables

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = "mcq_postgres"
SLICE = "touched_slice"
"""Name of the temporary table that holds a split's keys."""

_SPARK_IDS: Mapping[IdType, DataType] = {
    IdType.INTEGER: IntegerType(),
    IdType.BIGINT: LongType(),
    IdType.TEXT: StringType(),
    IdType.UUID: StringType(),
}


@dataclass(frozen=True)
class SnapshotRead:
    """Parameters of a read. `url` holds a password: Spark redacts an option of that name.

    `extent_sql` selects the snapshot and the number of blocks that the staged keys fill (part,
    snapshot, blocks), `keys_sql` all those keys, `rows_sql` the rows of the base table for the keys
    in `SLICE`; `count_sql` records the number of rows of a split (snapshot, input, split, rows).

    No snapshot is named here: when an attempt is retried and Spark computes the DataFrame again,
    it reads in the new snapshot.
    """

    url: str
    input_name: str
    extent_sql: str
    keys_sql: str
    rows_sql: str
    count_sql: str
    splits: int
    schema: StructType

    def load(self, spark: SparkSession) -> DataFrame:
        """Return the rows as a DataFrame. Spark reads them each time it computes the DataFrame."""
        spark.dataSource.register(SnapshotSource)
        options = {
            "url": self.url,
            "input": self.input_name,
            "extent": self.extent_sql,
            "keys": self.keys_sql,
            "rows": self.rows_sql,
            "count": self.count_sql,
            "splits": str(self.splits),
        }
        return spark.read.format(FORMAT).schema(self.schema).options(**options).load()


def spark_schema(base: BaseTables, table: str) -> StructType:
    """Return the Spark schema of a base table."""
    return StructType(
        [
            StructField(column, _spark_type(base, table, column, role))
            for column, role in BASE_COLUMNS[table].items()
        ]
    )


def spark_id(id_type: IdType) -> DataType:
    """Return the Spark type of an id."""
    return _SPARK_IDS[id_type]


def _spark_type(base: BaseTables, table: str, column: str, role: Role) -> DataType:
    if role is Role.TIME:
        return TimestampType()
    if role is Role.TEXT:
        return StringType()
    return spark_id(base.id_type(table, column))


@dataclass(frozen=True)
class Split(InputPartition):
    """One of `count` even ranges of the blocks that the staged keys fill."""

    index: int
    count: int


class SnapshotSource(DataSource):
    """The data source: it turns options into a reader. The schema is always given."""

    @classmethod
    def name(cls) -> str:
        """Return the format's name."""
        return FORMAT

    def reader(self, schema: StructType) -> DataSourceReader:
        """Return the reader of one input."""
        return SnapshotReader(dict(self.options))


class SnapshotReader(DataSourceReader):
    """Reads one input, split by split, on the executors."""

    def __init__(self, options: Mapping[str, str]) -> None:
        self._options = options

    def partitions(self) -> Sequence[InputPartition]:
        """Return the splits. Spark calls this once per DataFrame, however often it is computed."""
        count = int(self._options["splits"])
        return [Split(index, count) for index in range(count)]

    def read(self, partition: InputPartition) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a split."""
        assert isinstance(partition, Split)
        from mcq_analytics.postgres.task_errors import (  # noqa: PLC0415
            lost_connection,
            telling_the_driver,
        )
        from mcq_analytics.spark.task_connections import connect_task  # noqa: PLC0415

        options = self._options
        rows = 0
        with (
            telling_the_driver(options["url"]),
            connect_task(options["url"]) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(options["extent"])
            extent = cursor.fetchone()
            if extent is None:
                # Unlogged tables are empty after a crash; the snapshot has gone with it.
                raise lost_connection("the connection was lost with the server, which restarted")
            _, snapshot, blocks = extent
            first, end = (
                blocks * index // partition.count
                for index in (partition.index, partition.index + 1)
            )
            cursor.execute(
                f"{options['keys']} WHERE ctid >= $1::text::tid AND ctid < $2::text::tid",
                (f"({first},0)", f"({end},0)"),
            )
            keys = cursor.fetch_arrow_table()
            # The snapshot is older than the staged keys, so it needs a transaction of its own.
            connection.rollback()
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            cursor.execute(f"SET TRANSACTION SNAPSHOT '{snapshot}'")
            cursor.adbc_ingest(SLICE, keys, mode="create", temporary=True)
            cursor.execute(f"ANALYZE {SLICE}")
            cursor.execute(options["rows"])
            for batch in cursor.fetch_record_batch():
                rows += batch.num_rows
                yield batch
            cursor.execute(options["count"], (snapshot, options["input"], partition.index, rows))
            connection.commit()
