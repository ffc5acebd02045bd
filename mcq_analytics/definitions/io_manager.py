"""The IO manager: it loads the base rows that a run's window touches, and upserts the facts.

It ties Dagster's inputs and outputs to an attempt of `compute`, which does the work.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from dagster import (
    InitResourceContext,
    InputContext,
    IOManager,
    MetadataValue,
    OutputContext,
    io_manager,
)
from pyspark.sql import DataFrame

from mcq_analytics.compute.attempt import Attempt
from mcq_analytics.definitions.assets import STEP, column_lineage
from mcq_analytics.definitions.partitions import as_window
from mcq_analytics.definitions.resources import ScalingSparkResource
from mcq_analytics.definitions.run_attempt import RunAttempt, redoing_step
from mcq_analytics.definitions.run_state.in_progress import hours_of_run
from mcq_analytics.definitions.run_state.liveness import Alive, process_tags
from mcq_analytics.errors import McqError
from mcq_analytics.model.facts import FACTS_BY_NAME
from mcq_analytics.model.windows import format_hour
from mcq_analytics.postgres.errors import explaining
from mcq_analytics.transforms.student_tests import student_tests

_JAVA = "java"
"""The phase in which a run waits for Spark's Java and session to start."""


@io_manager(  # type: ignore[arg-type]  # its type leaves out generators, which Dagster accepts
    required_resource_keys={"database", "spark"},
    description="Loads the base rows that the window touches; upserts the facts",
)
def postgres_io_manager(context: InitResourceContext) -> Iterator[PostgresIOManager]:
    """Yield the IO manager of a run; liveness and the run's attempt end with the run."""
    database, spark = context.resources.database, context.resources.spark
    run, instance = context.run, context.instance
    if run is None or instance is None:
        # An asset is loaded outside a run, which `load_input` refuses.
        yield PostgresIOManager(None, spark)
        return
    hours = hours_of_run(run)
    if hours:
        spark.start_early(len(hours))
    with ExitStack() as held:
        alive = Alive(run.run_id, database.settings)
        alive.start()
        held.callback(alive.stop)
        instance.add_run_tags(run.run_id, process_tags(run.run_id))
        attempt = held.enter_context(RunAttempt(database, instance, run.run_id))
        yield PostgresIOManager(attempt, spark)


class PostgresIOManager(IOManager):
    """Loads the base tables and stores the facts, as one attempt over the run's window.

    The attempt begins with the first input: it takes the lock of the facts, opens a snapshot, and
    finds the students' tests that the window touches. All inputs are read in that snapshot. It is
    committed, for all facts, with the first output.
    """

    def __init__(self, attempt: RunAttempt | None, spark: ScalingSparkResource) -> None:
        self._attempt = attempt
        self._spark = spark

    def load_input(self, context: InputContext) -> DataFrame:
        """Return the rows of a base table that belong to the touched students' tests.

        Raises:
            McqError: one line with the cause and the remedy.

        """
        if self._attempt is None or context.definition_metadata.get("step") != STEP:
            raise McqError(
                f"{context.asset_key.to_user_string()} is loaded for the facts only: "
                "read the table from PostgreSQL instead"
            )
        window = as_window(context.step_context.partition_time_window)
        with (
            redoing_step(),
            explaining(f"the facts: reading {context.name}"),
            self._attempt.reading(window) as attempt,
        ):
            session = self._spark.session(attempt.record_count)
            if _JAVA not in attempt.report.seconds:
                attempt.report.phase_ended(_JAVA)
            return attempt.read(session, context.name)

    def handle_output(self, context: OutputContext, obj: DataFrame) -> None:
        """Store all facts with the first of them; `obj` is the result of `student_tests`.

        Computes it, upserts the touched rows and records the attempt, in one transaction.

        Raises:
            McqError: one line with the cause and the remedy. Nothing is changed then.

        """
        assert self._attempt is not None
        window = as_window(context.asset_partitions_time_window)
        with (
            explaining(f"the facts over {window}"),
            self._attempt.storing() as attempt,
        ):
            if not attempt.is_committed:
                attempt.commit(obj, student_tests, self._spark.session)
        context.add_output_metadata(
            {**_metadata(attempt, context.asset_key.path[-1]), "spark": self._spark.place}
        )


def _metadata(attempt: Attempt, fact: str) -> dict[str, Any]:
    """Return the metadata of an output. Hourly figures let ranges compare with single hours."""
    window, report = attempt.window, attempt.report
    counts = report.counts[fact]
    seconds = sum(report.seconds.values())
    return {
        "overview": MetadataValue.md(report.overviews[fact]),
        "dagster/row_count": report.fact_rows[fact],
        "dagster/table_name": attempt.table(fact),
        "dagster/column_lineage": column_lineage(FACTS_BY_NAME[fact]),
        "window_start": MetadataValue.timestamp(window.start),
        "window_end": MetadataValue.timestamp(window.end),
        "window": f"{format_hour(window.start)} to {format_hour(window.end)}",
        "hours": window.hours,
        **({"watermark": MetadataValue.timestamp(report.watermark)} if report.watermark else {}),
        "seconds": round(seconds, 3),
        "hourly_seconds": round(seconds / window.hours, 3),
        "hourly_rows_read": round(report.rows_read / window.hours, 1),
        "rows_written": counts.written,
        "rows_read": report.rows_read,
        "student_tests_touched": report.touched,
        "rows_inserted": counts.inserted,
        "rows_updated": counts.updated,
        "rows_deleted": counts.deleted,
        **{f"left_out_{what}": count for what, count in report.left_out.items()},
        **{f"{table}_with_several_rows": count for table, count in report.duplicates.items()},
        **{f"seconds_{phase}": seconds for phase, seconds in report.seconds.items()},
    }
