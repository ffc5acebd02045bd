"""One attempt of a fact over a window: lock, snapshot, staging, merge, and its row in etl_metadata.

The order is what makes the facts exact: the lock is held from before the snapshot until after the
commit, so that an older snapshot never overwrites what a newer one gave. Docs: architecture.md.
What fails for a reason that passes is tried again from the lock on, as `retries` says.
"""

from __future__ import annotations

import hashlib
import logging
import uuid
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timezone
from time import monotonic
from types import TracebackType
from typing import TypeVar

from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import StructField, StructType
from sqlalchemy import Connection, text
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from mcq_analytics.compute.fingerprints import (
    Fingerprints,
    fingerprints,
    store_fingerprints,
    watermark,
)
from mcq_analytics.compute.loads import planned_rows
from mcq_analytics.compute.merge import MergeCounts, merge, staging_columns
from mcq_analytics.compute.overviews import overview
from mcq_analytics.compute.selections import TEST_QUESTIONS, Selections
from mcq_analytics.errors import WaitedInVainError
from mcq_analytics.model.facts import TEST_SUMMARY, Fact
from mcq_analytics.model.windows import Window
from mcq_analytics.postgres.base_snapshot import (
    READER_LOCK_TIMEOUT,
    BaseSnapshot,
    base_snapshot,
    import_snapshot,
)
from mcq_analytics.postgres.database import APPLICATION_NAME, Database
from mcq_analytics.postgres.errors import LOCK_NOT_AVAILABLE, in_short
from mcq_analytics.postgres.fact_tables import CANCELLED, FAILED, SUCCESS, FactTables, fact_tables
from mcq_analytics.postgres.identifiers import quoted
from mcq_analytics.postgres.inspection import BaseTables
from mcq_analytics.postgres.retries import retrying
from mcq_analytics.postgres.schema import key_types, require_fact_tables
from mcq_analytics.spark.session import QUICK_RECORDS
from mcq_analytics.spark.sink import TASK, copy_to_staging
from mcq_analytics.spark.source import SLICE, SnapshotRead, spark_id, spark_schema

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

KEYS_PER_SPLIT = 100_000
"""Touched keys that one task reads the rows of."""


@dataclass
class AttemptReport:
    """What an attempt did: row counts, and seconds by phase.

    `rows_read` are base rows, `fact_rows` the rows that the window's recompute yields, `touched`
    the keys that were read; `left_out` counts base rows that no fact can hold, and `duplicates`
    the ids of the window that have several rows in `questions` or `sessions`. Up to `watermark`
    all hours are computed, from the first one on; `overview` is Markdown on the rows, for people.
    """

    rows_read: int = 0
    fact_rows: int = 0
    counts: MergeCounts = field(default_factory=lambda: MergeCounts(0, 0, 0))
    touched: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    duplicates: dict[str, int] = field(default_factory=dict)
    watermark: datetime | None = None
    overview: str = ""
    seconds: dict[str, float] = field(default_factory=dict)


class Attempt:
    """An attempt that is under way. Use it as a context manager: what is not committed has failed.

    `begin` waits until no other attempt of the fact is under way, then opens the snapshot and
    finds what the window touches. `read` gives the inputs, `commit` stores the result. A fault that
    passes (a lost connection, a lock timeout) is recorded as a failed attempt, and a new one takes
    its place: the inputs are DataFrames, which are read anew in the new snapshot.
    """

    def __init__(self, database: Database, fact: Fact, window: Window, run_id: str) -> None:
        self.fact = fact
        self.window = window
        self.run_id = run_id
        self.report = AttemptReport()
        self._database = database
        self._engine: Engine = database.engine(f"{APPLICATION_NAME} {run_id[:8]} {fact.name}"[:63])
        self._connection: Connection | None = None
        self._started_at = datetime.now(timezone.utc)
        self._token = uuid.uuid4().hex[:8]
        self._held = ExitStack()
        self._snapshot: BaseSnapshot | None = None
        self._tables: FactTables | None = None
        self._record_count = 0
        self._fingerprints: Fingerprints = {}
        self._frames: list[DataFrame] = []
        self._blocks: dict[str, int] = {}
        self._announced = False
        self._clock = monotonic()

    def __enter__(self) -> Attempt:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self.fail(error, FAILED if isinstance(error, Exception) else CANCELLED)
        self.close()

    def begin(self) -> None:
        """Take the fact's lock, open the snapshot, and stage the keys that the window touches.

        Raises:
            McqError: a base table or fact table is not as it must be, or another run held the lock
                for longer than the database's `lock_seconds`.
            sqlalchemy.exc.DBAPIError: the database refused, or was lost again and again.

        """
        self._persistently(lambda: None)

    def _persistently(self, work: Callable[[], Result]) -> Result:
        """Do some work in the attempt, beginning it where it is not begun, until it holds."""
        for trial in retrying(f"{self.fact.name} over {self.window}"):
            with trial:
                try:
                    if self._connection is None:
                        self._begin()
                    return work()
                except Exception as error:
                    self.fail(error)
                    self._end_session()
                    raise
        raise AssertionError("the last trial returns or raises")

    def _begin(self) -> None:
        self._started_at = datetime.now(timezone.utc)
        self._clock = monotonic()
        self._announced = False
        self.report = AttemptReport()
        self._record_count = 0
        self._connection = self._engine.connect()
        self._lock()
        self._phase("wait")
        self._record_dead_attempt()
        self._snapshot = self._held.enter_context(
            base_snapshot(self._engine, self._database.source_schema)
        )
        types = key_types(self._snapshot.base)
        require_fact_tables(self._own("READ COMMITTED"), self._database.fact_schema, types)
        self._tables = fact_tables(self._database.fact_schema, types)
        self._announce()
        self._stage_touched(self._snapshot.identifier)
        for frame in self._frames:
            frame.persist(StorageLevel.MEMORY_AND_DISK)
        self._phase("select")

    def read(self, spark: SparkSession, table: str) -> DataFrame:
        """Return the rows of a base table that belong to the touched rows, as of the snapshot.

        Columns: those of SPEC section 1. For `test_summary_fact`, further answers without a student
        stand for the questions of its tests.
        """
        base = self._require_base()
        rows = self._load(spark, table, "touched", spark_schema(base, table))
        if table == "answers" and self._has_test_questions:
            schema = StructType(
                [
                    StructField(name, spark_id(base.id_type("answers", name)))
                    for name in ("test_id", "question_id")
                ]
            )
            questions = self._load(spark, TEST_QUESTIONS, TEST_QUESTIONS, schema)
            rows = rows.unionByName(questions, allowMissingColumns=True)
        if self._splits("touched") == 1 and self._record_count <= QUICK_RECORDS:
            # Known to be of one partition, it is joined and grouped as it is: nothing is shuffled.
            rows = rows.coalesce(1)
        # A transform may use an input more than once; the database is to send it once.
        self._frames.append(rows.persist(StorageLevel.MEMORY_AND_DISK))
        return rows

    def _load(self, spark: SparkSession, name: str, part: str, schema: StructType) -> DataFrame:
        selections = self._selections()
        return SnapshotRead(
            url=self._url(),
            input_name=name,
            extent_sql=f"SELECT * FROM {self._staging('extents')} WHERE part = '{part}'",
            keys_sql=f"SELECT {selections.key_columns(name)} FROM {self._staging(part)}",
            rows_sql=selections.read(name, SLICE),
            count_sql=f"INSERT INTO {self._staging('reads')} VALUES ($1, $2, $3, $4)",
            splits=self._splits(part),
            schema=schema,
        ).load(spark)

    def _splits(self, part: str) -> int:
        return max(1, min(self._blocks[part], -(-self.report.touched // KEYS_PER_SPLIT)))

    def commit(self, frame: DataFrame) -> AttemptReport:
        """Compute `frame`, make it the touched rows of the fact, and record the success.

        All of it is one transaction; before it, only staging tables were written.
        """
        return self._persistently(lambda: self._commit(frame))

    def _commit(self, frame: DataFrame) -> AttemptReport:
        self._phase("plan")
        tasks = copy_to_staging(
            frame, self._url(), self._database.fact_schema, self._staging_name("rows")
        )
        self._require_snapshot().require_unchanged()
        self._held.close()
        self._phase("compute")
        connection = self._own("READ COMMITTED")
        tables = self._require_tables()
        with connection.begin():
            connection.exec_driver_sql(f"ANALYZE {self._staging('rows')}")
            self.report.rows_read = connection.execute(
                text(
                    "SELECT CAST(coalesce(sum(rows), 0) AS bigint) FROM "
                    f"(SELECT DISTINCT input, split, rows FROM {self._staging('reads')} "
                    f"JOIN {self._staging('extents')} USING (snapshot)) r"
                )
            ).scalar_one()
            self.report.fact_rows = connection.execute(
                text(f"SELECT count(*) FROM {self._staging('rows')} WHERE {TASK} = ANY(:tasks)"),
                {"tasks": tasks},
            ).scalar_one()
            self.report.counts = merge(
                connection,
                self.fact,
                fact_table=tables.facts[self.fact.name],
                hours_table=tables.hours[self.fact.name],
                staged=self._staging("rows"),
                touched=self._staging("touched"),
                test_questions=self._staging(TEST_QUESTIONS) if self._has_test_questions else None,
                tasks=tasks,
                window=self.window,
            )
            store_fingerprints(
                connection, self._database.fact_schema, self.fact, self._fingerprints
            )
            self.report.watermark = watermark(connection, self._database.fact_schema, self.fact)
            self.report.overview = overview(
                connection,
                self.fact,
                quoted(self._database.fact_schema, self.fact.name),
                self._staging("touched"),
            )
            self._withdraw(connection)
            self._record(connection, SUCCESS, None)
        self._phase("write")
        return self.report

    def fail(self, error: BaseException, status: str = FAILED) -> None:
        """Record the attempt as failed or cancelled, and drop its staging tables.

        Where the database does not let us, the next attempt of the fact does both. One that waited
        for another run in vain has not begun: it is not recorded.
        """
        if self._connection is None or isinstance(error, WaitedInVainError):
            return
        try:
            if self._connection.invalidated or not self._answers():
                # The lock went with the session; what is recorded here needs none.
                self._end_session()
                self._connection = self._engine.connect()
            connection = self._own("READ COMMITTED")
            with connection.begin():
                if self._withdraw(connection) or not self._announced:
                    self._record(connection, status, in_short(error))
        except SQLAlchemyError:
            logger.warning(
                "%s over %s failed, which could not be recorded: the next attempt will",
                self.fact.name,
                self.window,
            )

    def close(self) -> None:
        """Give the lock back and end the connection; forget what was read."""
        self._end_session()
        self._frames.clear()

    def _end_session(self) -> None:
        for frame in self._frames:
            frame.unpersist()
        self._held.close()
        if self._connection is not None:
            # Not a return to a pool: the server frees the lock as the session ends.
            self._connection.invalidate()
            self._connection.close()
            self._connection = None

    @property
    def table(self) -> str:
        """Name of the fact's table, with database and schema."""
        database = self._database
        return f"{database.url.database}.{database.fact_schema}.{self.fact.name}"

    @property
    def record_count(self) -> int:
        """About how many base rows are in the window: the planner's estimate, which reads none."""
        return self._record_count

    @property
    def _has_test_questions(self) -> bool:
        return self.fact.name == TEST_SUMMARY.name

    def _own(self, isolation: str) -> Connection:
        """Return the connection that holds the lock, outside a transaction."""
        assert self._connection is not None
        if self._connection.in_transaction():
            self._connection.rollback()
        return self._connection.execution_options(isolation_level=isolation)

    def _lock(self) -> None:
        connection = self._own("AUTOCOMMIT")
        key = {"key": lock_key(self._database.fact_schema, self.fact)}
        if connection.execute(text("SELECT pg_try_advisory_lock(:key)"), key).scalar_one():
            return
        holder = lock_holder(connection, key["key"])
        seconds = self._database.lock_seconds
        logger.warning("%s: waiting for %s, for up to %d s", self.fact.name, holder, seconds)
        if seconds > 0:
            connection.execute(text(f"SET statement_timeout = 0; SET lock_timeout = '{seconds} s'"))
            try:
                connection.execute(text("SELECT pg_advisory_lock(:key)"), key)
            except DBAPIError as error:
                if getattr(error.orig, "pgcode", None) != LOCK_NOT_AVAILABLE:
                    raise
            else:
                connection.execute(text("RESET statement_timeout; RESET lock_timeout"))
                return
        raise WaitedInVainError(
            f"{self.fact.name}: waited {seconds} s for {lock_holder(connection, key['key'])}, "
            "which computes the same fact: run it again later, or raise --lock-timeout"
        )

    def _record_dead_attempt(self) -> None:
        """Record and sweep what a process left that died while it held the lock we hold now."""
        connection = self._own("READ COMMITTED")
        schema = self._database.fact_schema
        running = quoted(schema, "running_attempt")
        with connection.begin():
            if (
                connection.execute(text("SELECT to_regclass(:name)"), {"name": running}).scalar()
                is None
            ):
                return
            connection.execute(
                text(
                    f"WITH dead AS (DELETE FROM {running} WHERE pipeline_name = :fact RETURNING *) "
                    f"INSERT INTO {quoted(schema, 'etl_metadata')} (pipeline_name, window_start, "
                    "window_end, status, started_at, finished_at, run_id, error) "
                    "SELECT pipeline_name, window_start, window_end, 'failed', started_at, "
                    "greatest(started_at, CAST(:found_at AS timestamptz)), run_id, :error FROM dead"
                ),
                {
                    "fact": self.fact.name,
                    "error": "the process died, or lost the database",
                    # It had ended when this attempt, which may be its retry, began.
                    "found_at": self._started_at,
                },
            )
            for (name,) in connection.execute(
                text(
                    "SELECT relname FROM pg_class WHERE relkind = 'r' "
                    "AND relnamespace = CAST(:schema AS regnamespace) "
                    "AND starts_with(relname, :prefix)"
                ),
                {"schema": quoted(schema), "prefix": self._staging_prefix},
            ).all():
                connection.exec_driver_sql(f"DROP TABLE {quoted(schema, name)}")

    def _announce(self) -> None:
        connection = self._own("READ COMMITTED")
        with connection.begin():
            connection.execute(
                text(
                    f"INSERT INTO {quoted(self._database.fact_schema, 'running_attempt')} "
                    "(pipeline_name, window_start, window_end, started_at, run_id) "
                    "VALUES (:fact, :start, :end, :started_at, :run_id)"
                ),
                self._identity(),
            )
            types = {
                name: self._require_base().id_type(self.fact.key_table, name)
                for name in self.fact.key
            }
            connection.exec_driver_sql(
                f"CREATE UNLOGGED TABLE {self._staging('rows')} "
                f"({staging_columns(self.fact, types)})"
            )
            connection.exec_driver_sql(
                f"CREATE UNLOGGED TABLE {self._staging('reads')} "
                "(snapshot text, input text, split bigint, rows bigint)"
            )
            connection.exec_driver_sql(
                f"CREATE UNLOGGED TABLE {self._staging('extents')} "
                "(part text, snapshot text, blocks bigint)"
            )
        self._announced = True

    def _stage_touched(self, snapshot: str) -> None:
        """Store the touched keys, as the snapshot has them, where every split can see them."""
        selections = self._selections()
        bound = {"window_start": self.window.start, "window_end": self.window.end}
        with self._engine.connect() as plain:
            connection = plain.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                import_snapshot(connection, snapshot)
                if self._has_test_questions:
                    self._create_as(connection, TEST_QUESTIONS, selections.test_questions(), bound)
                self.report.touched = self._create_as(
                    connection, "touched", selections.touched(), bound
                )
                connection.execute(
                    text(
                        f"INSERT INTO {self._staging('extents')} VALUES (:part, :snapshot, :blocks)"
                    ),
                    [
                        {"part": part, "snapshot": snapshot, "blocks": blocks}
                        for part, blocks in self._blocks.items()
                    ],
                )
                self._fingerprints = fingerprints(
                    connection, self._require_base(), self.fact, self.window
                )
                for table in self.fact.reads:
                    if table in ("answers", "submissions"):
                        self._record_count += planned_rows(
                            connection, selections, table, self.window
                        )
                        counts = connection.execute(text(selections.left_out(table)), bound)
                        for what, count in counts.mappings().one().items():
                            self.report.left_out[f"{table}_{what}"] = count
                    else:
                        self.report.duplicates[table] = connection.execute(
                            text(selections.duplicates(table)), bound
                        ).scalar_one()

    def _create_as(
        self, connection: Connection, part: str, select: str, bound: Mapping[str, datetime]
    ) -> int:
        """Stage what `select` gives, and return the number of rows."""
        name = self._staging(part)
        rows = connection.execute(text(f"CREATE UNLOGGED TABLE {name} AS {select}"), bound).rowcount
        connection.exec_driver_sql(f"ANALYZE {name}")
        # The file may be longer than its rows need: their last block tells where they end.
        last = connection.execute(text(f"SELECT CAST(max(ctid) AS text) FROM {name}")).scalar()
        self._blocks[part] = int(last.strip("()").split(",")[0]) + 1 if last else 0
        return rows

    def _record(self, connection: Connection, status: str, error: str | None) -> None:
        """Write the attempt's row in etl_metadata."""
        connection.execute(
            text(
                f"INSERT INTO {quoted(self._database.fact_schema, 'etl_metadata')} "
                "(pipeline_name, window_start, window_end, status, rows_read, rows_written, "
                "started_at, finished_at, run_id, error) VALUES (:fact, :start, :end, :status, "
                ":rows_read, :rows_written, :started_at, clock_timestamp(), :run_id, :error)"
            ),
            {
                **self._identity(),
                "status": status,
                "rows_read": self.report.rows_read if error is None else None,
                "rows_written": self.report.counts.written if error is None else None,
                "error": error,
            },
        )

    def _withdraw(self, connection: Connection) -> bool:
        """Drop the staging tables and the notice of the attempt; return whether it was there."""
        for part in ("rows", "reads", "extents", "touched", TEST_QUESTIONS):
            connection.exec_driver_sql(f"DROP TABLE IF EXISTS {self._staging(part)}")
        running = quoted(self._database.fact_schema, "running_attempt")
        found = connection.execute(
            text(
                f"DELETE FROM {running} WHERE pipeline_name = :fact AND run_id = :run_id "
                "AND started_at = :started_at"
            ),
            self._identity(),
        )
        return found.rowcount > 0

    def _answers(self) -> bool:
        """Return whether the session that holds the lock is still there."""
        try:
            self._own("READ COMMITTED").execute(text("SELECT 1"))
        except SQLAlchemyError:
            return False
        return True

    def _identity(self) -> dict[str, object]:
        return {
            "fact": self.fact.name,
            "start": self.window.start,
            "end": self.window.end,
            "started_at": self._started_at,
            "run_id": self.run_id,
        }

    def _selections(self) -> Selections:
        tables = self._require_tables()
        schema = self._database.fact_schema
        names = {
            "hours": quoted(schema, tables.hours[self.fact.name].name),
            "fact": quoted(schema, self.fact.name),
            TEST_QUESTIONS: self._staging(TEST_QUESTIONS),
        }
        return Selections(self.fact, self._require_base(), names)

    @property
    def _staging_prefix(self) -> str:
        return f"stg_{self.fact.name}_"

    def _staging_name(self, part: str) -> str:
        return f"{self._staging_prefix}{self._token}_{part}"

    def _staging(self, part: str) -> str:
        return quoted(self._database.fact_schema, self._staging_name(part))

    def _url(self) -> str:
        return self._database.conninfo(
            f"{APPLICATION_NAME} {self.run_id[:8]} task", lock_timeout=READER_LOCK_TIMEOUT
        )

    def _require_snapshot(self) -> BaseSnapshot:
        assert self._snapshot is not None
        return self._snapshot

    def _require_base(self) -> BaseTables:
        return self._require_snapshot().base

    def _require_tables(self) -> FactTables:
        assert self._tables is not None
        return self._tables

    def _phase(self, name: str) -> None:
        now = monotonic()
        self.report.seconds[name] = round(now - self._clock, 3)
        self._clock = now


def lock_key(schema: str, fact: Fact) -> int:
    """Return the advisory lock key of a fact in a schema: a signed 64-bit number."""
    digest = hashlib.blake2b(f"mcq_analytics {schema}.{fact.name}".encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "big", signed=True)


def lock_holder(connection: Connection, key: int) -> str:
    """Return a description of the session that holds an advisory lock.

    Since when it is there is null for whoever may not read the statistics of another role, and an
    application need not have a name.
    """
    row = connection.execute(
        text(
            "SELECT a.pid, a.usename, a.application_name, a.backend_start FROM pg_locks l "
            "JOIN pg_stat_activity a USING (pid) WHERE l.locktype = 'advisory' AND l.granted "
            "AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
            "AND ((CAST(l.classid AS bigint) << 32) | CAST(l.objid AS bigint)) = :key"
        ),
        {"key": key},
    ).first()
    if row is None:
        return "another run"
    name = row.application_name or f"a session of {row.usename or 'another role'}"
    since = f", since {row.backend_start:%H:%M:%S}" if row.backend_start else ""
    return f"{name} (server process {row.pid}{since})"
