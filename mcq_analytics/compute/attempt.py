"""One attempt of a fact over a window: lock, snapshot, touched keys, inputs, compute, commit.

The order makes the facts exact: the attempt holds the fact's lock from before its snapshot until
after its commit, so an older snapshot never overwrites the result of a newer one (see
docs/architecture.md). How each step works is in a module of its own. Transient errors restart it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession
from sqlalchemy.exc import SQLAlchemyError

from mcq_analytics.compute.attempt_rows import AttemptRows
from mcq_analytics.compute.fingerprints import Fingerprints
from mcq_analytics.compute.inputs import Inputs
from mcq_analytics.compute.lock import LockSession
from mcq_analytics.compute.report import AttemptReport
from mcq_analytics.compute.selections import TEST_QUESTIONS, Selections
from mcq_analytics.compute.staging import ROWS, Staging, drop_leftovers
from mcq_analytics.compute.store import store_result
from mcq_analytics.compute.touched import stage_touched
from mcq_analytics.errors import LockTimeoutError, McqError
from mcq_analytics.model.facts import Fact
from mcq_analytics.model.windows import Window
from mcq_analytics.postgres.base_snapshot import READER_LOCK_TIMEOUT, BaseSnapshot, base_snapshot
from mcq_analytics.postgres.database import APPLICATION_NAME, Database
from mcq_analytics.postgres.errors import in_short
from mcq_analytics.postgres.fact_tables import CANCELLED, FAILED, SUCCESS, FactTables, fact_tables
from mcq_analytics.postgres.identifiers import quoted
from mcq_analytics.postgres.metadata import CANCELLED_TEXT
from mcq_analytics.postgres.retries import retrying
from mcq_analytics.postgres.schema import key_types, require_fact_tables
from mcq_analytics.spark.sink import copy_to_staging

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclass(frozen=True)
class _Begun:
    """The state of an attempt from `begin` to its end; a retry replaces it as a whole."""

    snapshot: BaseSnapshot
    tables: FactTables
    inputs: Inputs
    fingerprints: Fingerprints


class Attempt:
    """An attempt, from the lock to its row in `etl_metadata`; a context manager.

    >>> with Attempt(database, TEST_FUNNEL, window, run_id) as attempt:  # doctest: +SKIP
    ...     inputs = {name: attempt.read(spark, name) for name in TEST_FUNNEL.reads}
    ...     report = attempt.commit(test_funnel_fact(**inputs))

    If the block ends without a commit, the attempt is recorded as failed; if it is interrupted, as
    cancelled. A transient error (a lost connection, a lock timeout) is recorded as a failed
    attempt too, and a new one takes its place: the inputs are DataFrames, which Spark reads anew in
    the new snapshot.
    """

    def __init__(self, database: Database, fact: Fact, window: Window, run_id: str) -> None:
        self.fact = fact
        self.window = window
        self.run_id = run_id
        self.report = AttemptReport()
        self._database = database
        self._schema = database.fact_schema
        self._engine = database.engine(f"{APPLICATION_NAME} {run_id[:8]} {fact.name}"[:63])
        self._session = LockSession(self._engine)
        self._staging = Staging(self._schema, fact)
        self._rows = AttemptRows(self._schema, fact, window, run_id)
        self._held = ExitStack()
        self._state: _Begun | None = None
        self._frames: list[DataFrame] = []
        self._announced = False
        self._committed = False

    def __enter__(self) -> Attempt:
        try:
            self.begin()
        except BaseException as error:
            self.end(error)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end(error)

    def begin(self) -> None:
        """Take the fact's lock, open the snapshot, and stage the keys that the window touches.

        Raises:
            McqError: a base table or fact table is missing or malformed, or another run held the
                lock for longer than the database's `lock_seconds`.
            sqlalchemy.exc.DBAPIError: the database refused, or was lost again and again.

        """
        self._persistently(lambda: None)

    def read(self, spark: SparkSession, table: str) -> DataFrame:
        """Return the rows of a base table that belong to the touched keys, as of the snapshot.

        Columns: those of docs/spec.md §1. For `test_summary_fact`, further answers without a
        student stand for the questions of its tests.
        """
        rows = self._begun().inputs.frame(spark, table)
        # A transform may use an input more than once; the database should send it once.
        self._frames.append(rows.persist(StorageLevel.MEMORY_AND_DISK))
        return rows

    def commit(self, frame: DataFrame) -> AttemptReport:
        """Compute `frame`, upsert it as the touched rows of the fact, and record the success.

        Spark writes to a staging table; the upsert and the record are one transaction.
        """
        return self._persistently(lambda: self._commit(frame))

    def end(self, error: BaseException | None = None) -> None:
        """Record the attempt, unless it is committed, as failed or cancelled, and close it.

        `error` is the reason. One that is not an `Exception` means a cancellation: Dagster
        interrupts a run that somebody cancels, as Ctrl-C does.
        """
        if error is not None and not isinstance(error, Exception):
            self._record_end(CANCELLED, CANCELLED_TEXT)
        elif error is not None:
            self._fail(error)
        elif not self._committed:
            self._fail(McqError("the asset failed before its rows were stored; see its run"))
        self.close()

    def close(self) -> None:
        """End the session, which frees the lock, and drop the cached inputs; record nothing."""
        self._end_session()
        self._frames.clear()

    @property
    def table(self) -> str:
        """Name of the fact's table, with database and schema."""
        return f"{self._database.url.database}.{self._schema}.{self.fact.name}"

    @property
    def record_count(self) -> int:
        """About how many base rows are in the window, by the planner's estimate."""
        return self._begun().inputs.record_count

    def _persistently(self, work: Callable[[], Result]) -> Result:
        """Run `work`, beginning the attempt first if need be, and again on transient errors."""
        for trial in retrying(f"{self.fact.name} over {self.window}"):
            with trial:
                try:
                    if not self._session.is_open:
                        self._begin()
                    return work()
                except Exception as error:
                    self._fail(error)
                    self._end_session()
                    raise
        raise AssertionError("the last trial returns or raises")

    def _begin(self) -> None:
        self._rows = AttemptRows(self._schema, self.fact, self.window, self.run_id)
        self._announced = False
        self.report = AttemptReport()
        self._session.open()
        self._session.take_lock(self._schema, self.fact, self._database.lock_seconds)
        self.report.phase_ended("wait")
        connection = self._session.connection()
        with connection.begin():
            self._rows.record_dead_attempt(connection)
            drop_leftovers(connection, self._schema, self.fact)
        snapshot = self._held.enter_context(
            base_snapshot(self._engine, self._database.source_schema)
        )
        types = key_types(snapshot.base)
        require_fact_tables(self._session.connection(), self._schema, types)
        tables = fact_tables(self._schema, types)
        connection = self._session.connection()
        with connection.begin():
            self._rows.announce(connection)
            self._staging.create(
                connection,
                {name: snapshot.base.id_type(self.fact.key_table, name) for name in self.fact.key},
            )
        self._announced = True
        self._state = self._select(snapshot, tables)
        for frame in self._frames:
            frame.persist(StorageLevel.MEMORY_AND_DISK)
        self.report.phase_ended("select")

    def _select(self, snapshot: BaseSnapshot, tables: FactTables) -> _Begun:
        """Stage the keys that the window touches, as of the snapshot."""
        selections = Selections(
            self.fact,
            snapshot.base,
            {
                "hours": quoted(self._schema, tables.hours[self.fact.name].name),
                "fact": quoted(self._schema, self.fact.name),
                TEST_QUESTIONS: self._staging.quoted(TEST_QUESTIONS),
            },
        )
        touched = stage_touched(
            self._engine, selections, self._staging, self.window, snapshot.identifier
        )
        self.report.touched = touched.keys
        self.report.left_out = touched.left_out
        self.report.duplicates = touched.duplicates
        inputs = Inputs(
            self._task_url(), selections, self._staging, touched.keys, touched.record_count
        )
        return _Begun(snapshot, tables, inputs, touched.fingerprints)

    def _commit(self, frame: DataFrame) -> AttemptReport:
        begun, report, staging = self._begun(), self.report, self._staging
        report.phase_ended("plan")
        tasks = copy_to_staging(frame, self._task_url(), self._schema, staging.name(ROWS))
        begun.snapshot.require_unchanged()
        self._held.close()
        report.phase_ended("compute")
        connection = self._session.connection()
        with connection.begin():
            store_result(
                connection,
                self.fact,
                self.window,
                schema=self._schema,
                tables=begun.tables,
                staging=staging,
                tasks=tasks,
                fingerprints=begun.fingerprints,
                report=report,
            )
            staging.drop(connection)
            self._rows.withdraw(connection)
            self._rows.record(
                connection,
                SUCCESS,
                rows_read=report.rows_read,
                rows_written=report.counts.written,
            )
        self._committed = True
        report.phase_ended("write")
        return report

    def _fail(self, error: Exception) -> None:
        # A run that only waited for the lock has not tried the hours: they stay as they were.
        if not isinstance(error, LockTimeoutError):
            self._record_end(FAILED, in_short(error))

    def _record_end(self, status: str, error: str) -> None:
        """Record the attempt and drop its staging tables.

        If the database does not let us, the next attempt of the fact does both.
        """
        if not self._session.is_open:
            return
        try:
            if self._session.is_lost():
                # The lock went with the session; recording needs none.
                self._end_session()
                self._session.open()
            connection = self._session.connection()
            with connection.begin():
                self._staging.drop(connection)
                # If an announced attempt has lost its row in running_attempt, it is recorded
                # already: it committed, or the next attempt took it for dead.
                if self._rows.withdraw(connection) or not self._announced:
                    self._rows.record(connection, status, error=error)
        except SQLAlchemyError:
            logger.warning(
                "%s over %s: the database did not record the failure; the next attempt will",
                self.fact.name,
                self.window,
            )

    def _end_session(self) -> None:
        for frame in self._frames:
            frame.unpersist()
        self._held.close()
        self._session.close()

    def _begun(self) -> _Begun:
        assert self._state is not None
        return self._state

    def _task_url(self) -> str:
        return self._database.conninfo(
            f"{APPLICATION_NAME} {self.run_id[:8]} task", lock_timeout=READER_LOCK_TIMEOUT
        )
