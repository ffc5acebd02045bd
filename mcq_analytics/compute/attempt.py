"""One attempt of the facts over a window: lock, snapshot, touched keys, inputs, compute, commit.

The order makes the facts exact: the attempt holds the facts' lock from before its snapshot until
after its commit, so an older snapshot never overwrites the result of a newer one (see
docs/architecture.md). How each step works is in a module of its own. Transient errors restart it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TypeVar

from pyspark.sql import DataFrame, SparkSession
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from mcq_analytics.compute.attempt_rows import AttemptRows, EndedAttempt
from mcq_analytics.compute.background import InBackground
from mcq_analytics.compute.fingerprints import Fingerprints
from mcq_analytics.compute.inputs import Inputs
from mcq_analytics.compute.lock import LockSession
from mcq_analytics.compute.report import AttemptReport
from mcq_analytics.compute.selections import Selections
from mcq_analytics.compute.staging import Staging, drop_leftovers
from mcq_analytics.compute.store import store_result
from mcq_analytics.compute.touched import Touched, fingerprints_of, stage_touched
from mcq_analytics.errors import LockTimeoutError, McqError
from mcq_analytics.model.base_tables import BASE_COLUMNS
from mcq_analytics.model.windows import Window
from mcq_analytics.postgres.base_snapshot import READER_LOCK_TIMEOUT, BaseSnapshot, base_snapshot
from mcq_analytics.postgres.database import APPLICATION_NAME, Database
from mcq_analytics.postgres.errors import in_short
from mcq_analytics.postgres.fact_tables import CANCELLED, FAILED, SUCCESS, FactTables, fact_tables
from mcq_analytics.postgres.identifiers import quoted
from mcq_analytics.postgres.metadata import CANCELLED_TEXT
from mcq_analytics.postgres.replicas import primary_state, wait_for_replica
from mcq_analytics.postgres.retries import retrying
from mcq_analytics.postgres.schema import key_types, require_fact_tables
from mcq_analytics.spark.sink import collect_to_staging, copy_to_staging

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Transform = Callable[..., DataFrame]
Sessions = Callable[[int], SparkSession]


@dataclass(frozen=True)
class _Begun:
    """The state of an attempt from `begin` to its end; a retry replaces it as a whole."""

    snapshot: BaseSnapshot
    tables: FactTables
    inputs: Inputs
    touched: Touched
    fingerprints: InBackground[Fingerprints] | None


class Attempt:
    """An attempt, from the lock to its rows in `etl_metadata`; a context manager.

    >>> with Attempt(database, window, run_id) as attempt:  # doctest: +SKIP
    ...     report = attempt.commit(student_tests(**attempt.inputs(spark)), student_tests)

    If the block ends without a commit, the attempt is recorded as failed; if it is interrupted, as
    cancelled. A transient error (a lost connection, a lock timeout) is recorded as a failed
    attempt too, and a new one takes its place, in a new snapshot: it records what the database,
    which may have been away, did not let the failed one record. Up to `driver_rows` base rows are
    read by this process, more by Spark's tasks.
    """

    def __init__(
        self, database: Database, window: Window, run_id: str, driver_rows: int | None = None
    ) -> None:
        self.window = window
        self.run_id = run_id
        self.report = AttemptReport()
        self.is_committed = False
        self._database = database
        self._driver_rows = driver_rows
        self._schema = database.fact_schema
        name = f"{APPLICATION_NAME} {run_id[:8]}"
        self._engine = database.engine(name)
        self._replica = None if database.read_url is None else database.to_read.engine(name)
        self._session = LockSession(self._engine)
        self._staging = Staging(self._schema)
        self._rows = AttemptRows(self._schema, window, run_id)
        self._held = ExitStack()
        self._state: _Begun | None = None
        self._announced = False
        self._unrecorded: list[EndedAttempt] = []

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
        """Take the lock, open the snapshot, and find the students' tests that the window touches.

        Raises:
            McqError: a base table or fact table is missing or malformed, or another run held the
                lock for longer than the database's `lock_seconds`.
            sqlalchemy.exc.DBAPIError: the database refused, or was lost again and again.

        """
        self._persistently(lambda: None)

    def read(self, spark: SparkSession, table: str) -> DataFrame:
        """Return the rows of a base table that belong to the touched students' tests.

        They are as of the snapshot. Columns: those of docs/spec.md §1.
        """
        return self._begun().inputs.frame(spark, table)

    def inputs(self, spark: SparkSession) -> dict[str, DataFrame]:
        """Return the rows of all base tables, as `read` does, by name."""
        return {name: self.read(spark, name) for name in BASE_COLUMNS}

    def commit(
        self, frame: DataFrame, transform: Transform, sessions: Sessions | None = None
    ) -> AttemptReport:
        """Compute `frame`, upsert it as the touched rows of all facts, and record the success.

        Spark's result goes to staging tables; the upsert and the record are one transaction.
        `transform` is the function of the inputs that returned `frame`: should a transient error
        restart the attempt, it is applied to the inputs of the new snapshot, in the session that
        `sessions` returns for so many records: that of `frame` may have ended with its server.
        """
        made_in = self._state

        def work() -> AttemptReport:
            if self._state is made_in:
                return self._commit(frame)
            spark = sessions(self.record_count) if sessions is not None else frame.sparkSession
            return self._commit(transform(**self.inputs(spark)))

        return self._persistently(work)

    def end(self, error: BaseException | None = None) -> None:
        """Record the attempt, unless it is committed, as failed or cancelled, and close it.

        `error` is the reason. One that is not an `Exception` means a cancellation: Dagster
        interrupts a run that somebody cancels, as Ctrl-C does.
        """
        # Where the session is closed already, its error is that of the last trial.
        if self._session.is_open:
            if error is not None and not isinstance(error, Exception):
                self._record_end(CANCELLED, CANCELLED_TEXT)
            elif error is not None:
                self._fail(error)
            elif not self.is_committed:
                self._fail(McqError("the asset failed before its rows were stored; see its run"))
        self.close()

    def close(self) -> None:
        """End the session, which frees the lock, and drop the inputs; record nothing."""
        self._end_session()
        self._state = None

    def table(self, fact: str) -> str:
        """Return the name of a fact's table, with database and schema."""
        return f"{self._database.url.database}.{self._schema}.{fact}"

    @property
    def record_count(self) -> int:
        """About how many base rows Spark will read."""
        return self._begun().inputs.record_count

    def _persistently(self, work: Callable[[], Result]) -> Result:
        """Run `work`, beginning the attempt first if need be, and again on transient errors."""
        for trial in retrying(f"the facts over {self.window}"):
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
        self._rows = AttemptRows(self._schema, self.window, self.run_id)
        self._announced = False
        self.report = AttemptReport()
        self._session.open()
        self._session.take_lock(self._schema, self._database.lock_seconds)
        self.report.phase_ended("wait")
        connection = self._session.connection()
        with connection.begin():
            self._record_unrecorded(connection)
            self._rows.record_dead_attempt(connection)
            drop_leftovers(connection, self._schema)
        self._unrecorded.clear()
        snapshot = self._held.enter_context(self._base_snapshot(connection))
        types = key_types(snapshot.base)
        require_fact_tables(self._session.connection(), self._schema, types)
        tables = fact_tables(self._schema, types)
        connection = self._session.connection()
        with connection.begin():
            self._rows.announce(connection)
            self._staging.create(connection, snapshot.base)
        self._announced = True
        self._state = self._select(snapshot, tables)

    def _base_snapshot(self, connection: Connection) -> AbstractContextManager[BaseSnapshot]:
        """Return the snapshot to read in: of a replica once it has all that is there now."""
        if self._replica is None:
            return base_snapshot(self._engine, self._database.source_schema)
        with connection.begin():
            primary = primary_state(connection)

        def wait(replica: Connection) -> None:
            wait_for_replica(replica, primary, self._database.replica_seconds)
            self.report.phase_ended("replica")

        return base_snapshot(self._replica, self._database.source_schema, wait)

    def _select(self, snapshot: BaseSnapshot, tables: FactTables) -> _Begun:
        """Find the students' tests that the window touches, and read their rows if they are few."""
        report, staging = self.report, self._staging
        selections = Selections(snapshot.base, {"hours": quoted(self._schema, tables.hours.name)})
        touched = stage_touched(self._engine, snapshot, selections, staging, self.window)
        report.touched = touched.keys
        report.left_out = touched.left_out
        report.duplicates = touched.duplicates
        report.phase_ended("select")
        inputs = Inputs(
            self._task_url(self._database.to_read),
            self._task_url(self._database),
            snapshot.identifier,
            selections,
            staging,
            touched,
            self._driver_rows,
        )
        # Beside the read; of a long window beside the write, which leaves all processors but one
        # idle, as the computation does not.
        fingerprints = None
        if inputs.may_be_few or not touched.is_most:
            fingerprints = self._fingerprints(snapshot, touched)
        inputs.read_if_few()
        begun = _Begun(snapshot, tables, inputs, touched, fingerprints)
        if inputs.are_here:
            assert fingerprints is not None
            report.rows_read = inputs.rows_here
            self._release(snapshot, fingerprints)
        else:
            inputs.measure(self._session.connection())
        report.phase_ended("read")
        return begun

    def _fingerprints(self, snapshot: BaseSnapshot, touched: Touched) -> InBackground[Fingerprints]:
        """Begin to take the fingerprints of the window."""
        work = partial(fingerprints_of, snapshot.base, self.window, touched.is_most)
        found = InBackground(snapshot.engine, snapshot.identifier, work)
        self._held.callback(found.stop)
        return found

    def _release(
        self, snapshot: BaseSnapshot, fingerprints: InBackground[Fingerprints]
    ) -> Fingerprints:
        """Let the base tables go, once all that is needed of them is read."""
        result = fingerprints.result()
        snapshot.require_unchanged()
        self._held.close()
        return result

    def _commit(self, frame: DataFrame) -> AttemptReport:
        begun, report, staging = self._begun(), self.report, self._staging
        report.phase_ended("plan")
        target = (self._task_url(self._database), self._schema, staging.names())
        if begun.inputs.are_here:
            # Without a row to read there is none to compute.
            tasks = collect_to_staging(frame, *target) if report.rows_read else []
        else:
            begun.inputs.cache()
            tasks = copy_to_staging(frame, *target)
            if begun.fingerprints is not None:
                self._release(begun.snapshot, begun.fingerprints)
            report.rows_read = begun.inputs.rows_here + staging.rows_read(
                self._session.connection(), begun.snapshot.identifier
            )
        report.phase_ended("compute")
        if begun.fingerprints is not None:
            fingerprints = begun.fingerprints.result
        else:
            late = self._fingerprints(begun.snapshot, begun.touched)
            fingerprints = partial(self._release, begun.snapshot, late)
        connection = self._session.connection()
        with connection.begin():
            store_result(
                connection,
                self.window,
                schema=self._schema,
                tables=begun.tables,
                staging=staging,
                tasks=tasks,
                fingerprints=fingerprints,
                report=report,
                is_large=begun.touched.is_most and not begun.inputs.are_here,
            )
            staging.drop(connection)
            self._rows.withdraw(connection)
            self._rows.record(
                connection,
                SUCCESS,
                rows_read=report.rows_read,
                rows_written={name: counts.written for name, counts in report.counts.items()},
            )
        self.is_committed = True
        report.phase_ended("write")
        return report

    def _fail(self, error: Exception) -> None:
        # A run that only waited for the lock has not tried the hours: they stay as they were.
        if not isinstance(error, LockTimeoutError):
            self._record_end(FAILED, in_short(error))

    def _record_end(self, status: str, error: str) -> None:
        """Record the attempt and drop its staging tables.

        If the database does not let us, our next trial records it, or else the next run that its
        process died; either drops the tables.
        """
        self._unrecorded.append(EndedAttempt(self._rows, self._announced, status, error))
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
                self._record_unrecorded(connection)
        except SQLAlchemyError:
            logger.warning(
                "the facts over %s: the database did not record the failure; the next attempt will",
                self.window,
            )
        else:
            self._unrecorded.clear()

    def _record_unrecorded(self, connection: Connection) -> None:
        for ended in self._unrecorded:
            ended.record(connection)

    def _end_session(self) -> None:
        if self._state is not None:
            self._state.inputs.release()
        self._held.close()
        self._session.close()

    def _begun(self) -> _Begun:
        assert self._state is not None
        return self._state

    def _task_url(self, database: Database) -> str:
        return database.conninfo(
            f"{APPLICATION_NAME} {self.run_id[:8]} task", lock_timeout=READER_LOCK_TIMEOUT
        )
