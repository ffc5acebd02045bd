"""The base rows of the touched students' tests, for Spark: read in one of three ways.

A few rows come through this process: Spark then needs no Python worker. More are read by Spark's
tasks, each for a slice of the keys. If the window holds much of the answers, the tasks read all of
the tables by ranges of their blocks, and Spark picks the rows of the touched students' tests.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow as pa
from pyspark import StorageLevel
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from sqlalchemy import Connection, text

from mcq_analytics.compute.selections import IDS, SLICE, Selections, address
from mcq_analytics.compute.staging import TOUCHED, Staging
from mcq_analytics.compute.touched import Touched, plan_setting
from mcq_analytics.errors import SparkServerLostError
from mcq_analytics.model.base_tables import BASE_COLUMNS
from mcq_analytics.model.facts import STUDENT_TEST
from mcq_analytics.postgres.identifiers import quoted
from mcq_analytics.spark.scaling import QUICK_RECORDS
from mcq_analytics.spark.source import (
    SnapshotRead,
    batches_of,
    key_schema,
    keys_of,
    reading_snapshot,
    spark_schema,
)
from mcq_analytics.spark.task_connections import connect_task

if TYPE_CHECKING:
    from adbc_driver_manager.dbapi import Cursor

DRIVER_ROWS = 200_000
"""Up to this many rows are read by this process, unless a setting says otherwise."""
SMALL_TABLE_ROWS = 200_000
"""Up to this many rows of a table with few columns come through this process, also if the answers
do not. Spark holds them, and more would fill its memory."""
BROADCAST_KEYS = 1_000_000
"""Up to so many students' tests each executor holds them all, 100 to 300 bytes each; the rows are
then picked before they are shuffled."""
KEYS_PER_SPLIT = 10_000
ROWS_PER_SPLIT = 250_000

_EXTENT = """
    WITH RECURSIVE parts AS (
        SELECT oid, relkind FROM pg_class WHERE oid = CAST(:table AS regclass)
        UNION ALL
        SELECT c.oid, c.relkind FROM parts p JOIN pg_inherits i ON i.inhparent = p.oid
        JOIN pg_class c ON c.oid = i.inhrelid
    )
    SELECT coalesce(max(pg_relation_size(CAST(oid AS regclass)))
            FILTER (WHERE relkind IN ('r', 'm')), 0)
        / CAST(current_setting('block_size') AS bigint)
    FROM parts
"""


@dataclass
class Inputs:
    """The inputs of one attempt. This process reads them if they have up to `driver_rows` rows."""

    url: str
    staging_url: str
    snapshot: str
    selections: Selections
    staging: Staging
    touched: Touched
    driver_rows: int | None
    _tables: dict[str, pa.Table] = field(default_factory=dict)
    _keys: pa.Table | None = None
    _frames: list[DataFrame] = field(default_factory=list)
    _blocks: dict[str, int] = field(default_factory=dict)
    _session: SparkSession | None = None

    @property
    def are_here(self) -> bool:
        """Return whether this process has read all rows."""
        return self._tables.keys() == BASE_COLUMNS.keys()

    @property
    def record_count(self) -> int:
        """About how many base rows Spark will read."""
        if self.are_here:
            return self.rows_here
        return self.touched.in_window

    @property
    def rows_here(self) -> int:
        """How many base rows this process has read."""
        return sum(rows.num_rows for rows in self._tables.values())

    @property
    def may_be_few(self) -> bool:
        """Whether the rows may be few enough for this process."""
        return max(self.touched.in_window, self.touched.keys) <= self._most_rows

    def read_if_few(self) -> None:
        """Read the rows in this process if they are few."""
        if self.may_be_few:
            self._read_all(self._most_rows)
        if self.touched.is_most and not self.are_here:
            self._read_small_tables()

    @property
    def _most_rows(self) -> int:
        return DRIVER_ROWS if self.driver_rows is None else self.driver_rows

    def _read_small_tables(self) -> None:
        """Read whole tables that are small beside the answers.

        Spark would read each of them in a job of its own, before those of the answers.
        """
        if self.touched.keys > SMALL_TABLE_ROWS:
            return
        with (
            connect_task(self.url) as connection,
            reading_snapshot(connection, self.snapshot) as cursor,
        ):
            for table in (*IDS, "submissions"):
                cursor.execute(self.selections.read_range(table))
                rows = _at_most(cursor, SMALL_TABLE_ROWS)
                if rows is not None:
                    self._tables[table] = rows
        with connect_task(self.staging_url) as connection, connection.cursor() as cursor:
            keys = self.selections.keys_as_sent()
            cursor.execute(f"SELECT {keys} FROM {self.staging.quoted(TOUCHED)}")
            self._keys = cursor.fetch_arrow_table()

    def _read_all(self, left: int) -> None:
        with connect_task(self.staging_url) as connection:
            beginning = keys_of(connection, self._keys_sql)
        with (
            connect_task(self.url) as connection,
            reading_snapshot(connection, self.snapshot) as cursor,
        ):
            cursor.execute(plan_setting(self.selections.base))
            found: dict[str, pa.Table] = {}
            for table in ("answers", "submissions", *IDS):
                if table in IDS:
                    ids = found["answers"][IDS[table]].unique().drop_null().to_pylist()
                    cursor.execute(
                        self.selections.read(table, self.selections.given_ids(table, ids))
                    )
                else:
                    cursor.execute(f"{beginning} {self.selections.read(table, SLICE)}")
                rows = _at_most(cursor, left)
                if rows is None:
                    # The students' tests are much longer than the window.
                    return
                found[table] = rows
                left -= rows.num_rows
        self._tables = found

    def measure(self, connection: Connection) -> None:
        """Find out how many blocks there are to split."""
        self._blocks[self.staging.quoted(TOUCHED)] = self.staging.touched_blocks(connection)
        if self.touched.is_most:
            base = self.selections.base
            for table in (quoted(base[name].schema or "public", name) for name in BASE_COLUMNS):
                blocks = connection.execute(text(_EXTENT), {"table": table}).scalar_one()
                self._blocks[table] = blocks

    def frame(self, spark: SparkSession, table: str) -> DataFrame:
        """Return the rows of a base table that belong to the touched students' tests.

        Raises:
            SparkServerLostError: the session of an earlier table has ended with its server.

        """
        self._session = self._session or spark
        if self._session is not spark:
            raise SparkServerLostError("the Spark server was lost between two of the tables")
        schema = spark_schema(self.selections.base, table)
        if table in self._tables:
            rows = spark.createDataFrame(self._tables[table], schema)
            if self.are_here:
                # Spark joins and groups a single partition as it is, without a shuffle.
                return rows.coalesce(1) if self.record_count <= QUICK_RECORDS else rows
        elif self.touched.is_most:
            splits = -(-self.record_count // ROWS_PER_SPLIT)
            rows = self._range_read(table).load(spark, schema, splits)
        else:
            splits = -(-self.touched.keys // KEYS_PER_SPLIT)
            rows = self._key_read(table).load(spark, schema, splits)
        if table not in IDS:
            return self._by_student_test(spark, rows)
        if table not in self._tables:
            rows = rows.persist(StorageLevel.MEMORY_AND_DISK)
            self._frames.append(rows)
        return rows

    def cache(self) -> None:
        """Read the sessions and answer keys, if Spark's tasks do.

        Spark then knows how large they are, and need not shuffle the answers to join them.
        """
        for frame in self._frames:
            frame.count()

    def release(self) -> None:
        """Drop the rows that Spark and this process hold."""
        for frame in self._frames:
            # If the Spark server has ended, so have the rows.
            with suppress(PySparkException):
                frame.unpersist()
        self._frames.clear()
        self._tables, self._keys = {}, None

    def _touched(self, spark: SparkSession) -> DataFrame:
        schema = key_schema(self.selections.base)
        if self._keys is not None:
            return spark.createDataFrame(self._keys, schema)
        return self._key_read("touched").load(
            spark, schema, -(-self.touched.keys // ROWS_PER_SPLIT)
        )

    def _by_student_test(self, spark: SparkSession, rows: DataFrame) -> DataFrame:
        """Return the rows of the touched students' tests, shuffled by these.

        They are shuffled once: everything that follows works within a student's test.
        """
        key = list(STUDENT_TEST)
        if not self.touched.is_most:
            return rows.repartition(*key)
        touched = self._touched(spark)
        # Spark does not know how many rows its Python workers return.
        if self.touched.keys <= BROADCAST_KEYS:
            return rows.join(F.broadcast(touched), key, "left_semi").repartition(*key)
        return rows.repartition(*key).join(
            touched.repartition(*key).hint("merge"), key, "left_semi"
        )

    @property
    def _keys_sql(self) -> str:
        return self.selections.beginning_with_keys(self.staging.quoted(TOUCHED))

    def _key_read(self, table: str) -> SnapshotRead:
        if table == "touched":
            rows_sql = f"SELECT {self.selections.keys_as_sent()} FROM {SLICE}"
        elif table in IDS:
            rows_sql = self.selections.read_for_answers(table, SLICE)
        else:
            rows_sql = self.selections.read(table, SLICE)
        touched = self.staging.quoted(TOUCHED)
        return self._read(table, self._keys_sql, rows_sql, "ctid", self._blocks[touched])

    def _range_read(self, table: str) -> SnapshotRead:
        base = self.selections.base
        blocks = self._blocks[quoted(base[table].schema or "public", table)]
        return self._read(table, "", self.selections.read_range(table), address(table), blocks)

    def _read(
        self, table: str, keys_sql: str, rows_sql: str, row_address: str, blocks: int
    ) -> SnapshotRead:
        return SnapshotRead(
            url=self.url,
            staging_url=self.staging_url,
            snapshot=self.snapshot,
            input_name=table,
            keys_sql=keys_sql,
            rows_sql=rows_sql,
            address=row_address,
            blocks=blocks,
            setting_sql=plan_setting(self.selections.base) if keys_sql else "",
            count_sql=self.staging.count_sql,
        )


def _at_most(cursor: Cursor, rows: int) -> pa.Table | None:
    """Return all rows of a result, or None if there are more than `rows`."""
    found = []
    for batch in batches_of(cursor):
        rows -= batch.num_rows
        if rows < 0:
            return None
        found.append(batch)
    return pa.Table.from_batches(found, cursor.fetch_record_batch().schema)
