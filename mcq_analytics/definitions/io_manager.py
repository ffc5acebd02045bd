"""The IO manager: base tables in, as the window touches them; facts out, by upsert.

It ties a Dagster step to an attempt of `storage`, which does the work.
"""

from __future__ import annotations

from typing import Any

from dagster import (
    ConfigurableIOManager,
    DagsterRunStatus,
    InitResourceContext,
    InputContext,
    MetadataValue,
    OutputContext,
)
from pydantic import PrivateAttr
from pyspark.sql import DataFrame

from mcq_analytics.compute.attempt import Attempt, AttemptReport
from mcq_analytics.definitions.assets import column_lineage
from mcq_analytics.definitions.partitions import as_window
from mcq_analytics.definitions.resources import DatabaseResource, ScalingSparkResource
from mcq_analytics.definitions.run_state.liveness import Alive, process_tags
from mcq_analytics.errors import McqError
from mcq_analytics.model.facts import FACTS_BY_NAME
from mcq_analytics.model.windows import Window, format_hour
from mcq_analytics.postgres.errors import explaining
from mcq_analytics.postgres.fact_tables import CANCELLED
from mcq_analytics.postgres.metadata import CANCELLED_TEXT


class PostgresIOManager(ConfigurableIOManager):
    """Loads base tables for a fact and stores the fact, as one attempt over the run's window.

    The first input opens the attempt: it takes the fact's lock, opens a snapshot and finds the
    rows that the window touches. All inputs are read in that snapshot. The output commits it.
    """

    database: DatabaseResource
    spark: ScalingSparkResource

    _attempts: dict[str, Attempt] = PrivateAttr(default_factory=dict)
    _alive: Alive | None = PrivateAttr(default=None)

    def setup_for_execution(self, context: InitResourceContext) -> None:
        """Note on the run which process it is, and show that it is alive."""
        if context.run is not None and context.instance is not None:
            self._alive = Alive(context.run.run_id)
            self._alive.start()
            context.instance.add_run_tags(context.run.run_id, process_tags(context.run.run_id))

    def load_input(self, context: InputContext) -> DataFrame:
        """Return the rows of a base table that belong to what the window touches.

        Raises:
            McqError: one line that says what is wrong, and the remedy.

        """
        name = context.definition_metadata.get("fact")
        if name is None:
            raise McqError(
                f"{context.asset_key.to_user_string()} can be loaded for the facts only: "
                "read the table from PostgreSQL instead"
            )
        with explaining(f"{name}: reading {context.name}"):
            try:
                attempt = self._attempts.get(name) or self._open(context, name)
                return attempt.read(self.spark.session(attempt.record_count), context.name)
            except BaseException as error:
                self._end(name, error)
                raise

    def handle_output(self, context: OutputContext, obj: DataFrame) -> None:
        """Compute the fact's touched rows, upsert them, and record the attempt, at once.

        Raises:
            McqError: one line that says what is wrong, and the remedy. Nothing is changed then.

        """
        name = context.asset_key.path[-1]
        attempt = self._attempts[name]
        with explaining(f"{name} over {attempt.window}"):
            try:
                report = attempt.commit(obj)
            except BaseException as error:
                self._end(name, error)
                raise
        self._end(name, None)
        context.add_output_metadata(_metadata(name, attempt.table, attempt.window, report))

    def teardown_after_execution(self, context: InitResourceContext) -> None:
        """End the attempts whose asset failed or was stopped between its inputs and its output."""
        for name in list(self._attempts):
            if _is_stopped(context):
                self._end(name, KeyboardInterrupt())
            else:
                said = "the asset failed before its rows were stored; see its run"
                self._end(name, McqError(said))
        if self._alive is not None:
            self._alive.stop()

    def _open(self, context: InputContext, name: str) -> Attempt:
        if not context.has_asset_partitions:
            raise McqError(f"{name}: the first input must be one by hour, which tells the window")
        run_id = context.step_context.run_id
        attempt = Attempt(
            self.database.open(),
            FACTS_BY_NAME[name],
            as_window(context.asset_partitions_time_window),
            run_id,
        )
        self._attempts[name] = attempt
        attempt.begin()
        return attempt

    def _end(self, name: str, error: BaseException | None) -> None:
        attempt = self._attempts.pop(name, None)
        if attempt is None:
            return
        if isinstance(error, Exception):
            attempt.fail(error)
        elif error is not None:
            # Dagster interrupts a run that somebody cancels; so does Ctrl-C.
            attempt.fail(McqError(CANCELLED_TEXT), CANCELLED)
        attempt.close()


def _is_stopped(context: InitResourceContext) -> bool:
    if context.instance is None or context.run is None:
        return False
    run = context.instance.get_run_by_id(context.run.run_id)
    stopped = (DagsterRunStatus.CANCELING, DagsterRunStatus.CANCELED)
    return run is not None and run.status in stopped


def _metadata(name: str, table: str, window: Window, report: AttemptReport) -> dict[str, Any]:
    """Return what the UI shows of an attempt. Hourly figures let ranges compare with hours."""
    seconds = sum(report.seconds.values())
    return {
        "overview": MetadataValue.md(report.overview),
        "dagster/row_count": report.fact_rows,
        "dagster/table_name": table,
        "dagster/column_lineage": column_lineage(FACTS_BY_NAME[name]),
        "window_start": MetadataValue.timestamp(window.start),
        "window_end": MetadataValue.timestamp(window.end),
        "window": f"{format_hour(window.start)} to {format_hour(window.end)}",
        "hours": window.hours,
        **({"watermark": MetadataValue.timestamp(report.watermark)} if report.watermark else {}),
        "seconds": round(seconds, 3),
        "hourly_seconds": round(seconds / window.hours, 3),
        "hourly_rows_read": round(report.rows_read / window.hours, 1),
        "rows_written": report.counts.written,
        "rows_read": report.rows_read,
        "rows_touched": report.touched,
        "rows_inserted": report.counts.inserted,
        "rows_updated": report.counts.updated,
        "rows_deleted": report.counts.deleted,
        **{f"left_out_{what}": count for what, count in report.left_out.items()},
        **{f"{table}_with_several_rows": count for table, count in report.duplicates.items()},
        **{f"seconds_{phase}": seconds for phase, seconds in report.seconds.items()},
    }
