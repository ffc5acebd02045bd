"""Runs the facts over windows in this process, recorded on the Dagster instance."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any
from uuid import uuid4

from dagster import (
    AssetKey,
    DagsterInstance,
    ExecuteInProcessResult,
    FloatMetadataValue,
    IntMetadataValue,
    JobDefinition,
    MetadataValue,
)
from sqlalchemy.exc import SQLAlchemyError

from mcq_analytics.compute.loads import largest_load
from mcq_analytics.definitions.assets import STEP
from mcq_analytics.definitions.build import FACTS_JOB, build_definitions
from mcq_analytics.definitions.partitions import range_tags
from mcq_analytics.definitions.requests import HOURS_PER_RUN
from mcq_analytics.definitions.run_state.hour_outcomes import record_ended_runs
from mcq_analytics.definitions.run_state.in_progress import MAX_RETRIES_TAG
from mcq_analytics.definitions.run_state.liveness import end_dead_runs, process_tags
from mcq_analytics.definitions.run_state.run_errors import first_error
from mcq_analytics.errors import McqError, UsageError
from mcq_analytics.instance.storage import connect_to_records
from mcq_analytics.model.facts import FACTS, FACTS_BY_NAME
from mcq_analytics.model.windows import Window, format_hour
from mcq_analytics.postgres.database import Database, open_database
from mcq_analytics.postgres.errors import explaining
from mcq_analytics.postgres.metadata import next_window
from mcq_analytics.settings import Settings
from mcq_analytics.settings.home import ready_home

HoursDone = Callable[[int, datetime], None]
"""Called with the number of hours just computed, and their end."""


@dataclass
class FactTotals:
    """Rows and seconds of one fact, summed over the runs of a window."""

    rows_read: int = 0
    rows_inserted: int = 0
    rows_updated: int = 0
    rows_deleted: int = 0
    phases: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Seconds from requesting the lock to the commit, over all runs."""
        return sum(self.phases.values())


def ensure_dagster_home(settings: Settings) -> None:
    """Set DAGSTER_HOME if it is unset: to the checkout if this is one, else to MCQ_HOME."""
    if os.environ.get("DAGSTER_HOME"):
        return
    home = Path.cwd()
    if not (home / "dagster.yaml").exists():
        home = settings.home
        ready_home(home)
        if not (home / "dagster.yaml").exists():
            packaged = files("mcq_analytics") / "instance" / "dagster.yaml"
            (home / "dagster.yaml").write_text(packaged.read_text())
    os.environ["DAGSTER_HOME"] = str(home)


@contextmanager
def dagster_instance(settings: Settings) -> Iterator[DagsterInstance]:
    """Open the Dagster instance of a command.

    Raises:
        McqError: the database of its records cannot be reached.

    """
    ensure_dagster_home(settings)
    with explaining("opening Dagster's records (MCQ_DAGSTER_URL)", SQLAlchemyError):
        connect_to_records(settings)
    with DagsterInstance.get() as instance:
        yield instance


def window_to_run(
    database: Database,
    settings: Settings,
    start: str | None,
    end: str | None,
) -> Window | None:
    """Return the window that `run` computes, or None if there is nothing to do.

    Without a start it begins at the first hour that has not succeeded for all facts.

    Raises:
        UsageError: the window is empty or not in whole hours, or lies outside the partitions.
        McqError: the database cannot be read.

    """
    engine = database.engine()
    with explaining("reading etl_metadata", SQLAlchemyError):
        begin, finish = next_window(engine, list(FACTS_BY_NAME), settings, start, end)
    if begin >= finish:
        return None
    if begin < settings.partition_start:
        raise UsageError(
            f"{format_hour(begin)} is before the first partition, "
            f"{format_hour(settings.partition_start)}: start there, or set MCQ_PARTITION_START"
        )
    return Window(begin, finish)


def run_windows(
    settings: Settings, windows: Sequence[Window], progress: HoursDone | None = None
) -> dict[str, FactTotals]:
    """Compute the facts over windows, one after the other, in runs of up to `HOURS_PER_RUN` hours.

    Raises:
        McqError: a run failed; the message is that of its first error. Earlier runs stay committed.

    """
    # Dagster would also log every event to stderr.
    logging.getLogger("dagster").setLevel(logging.ERROR)
    chunks = [chunk for window in windows for chunk in window.chunks(HOURS_PER_RUN)]
    database = open_database(settings)
    load = 0
    if len(chunks) > 1:
        with explaining("estimating the number of rows", SQLAlchemyError):
            load = largest_load(database, chunks)
    job = build_definitions(settings, largest_load=load).resolve_job_def(FACTS_JOB)
    totals = {fact.name: FactTotals() for fact in FACTS}
    with (
        explaining("reading the records of past runs", SQLAlchemyError),
        dagster_instance(settings) as instance,
    ):
        end_dead_runs(instance, settings)
        record_ended_runs(instance, settings, database.engine())
        for chunk in chunks:
            _add(totals, _execute(job, instance, chunk))
            if progress is not None:
                progress(chunk.hours, chunk.end)
    return totals


def run_window(
    settings: Settings, window: Window, progress: HoursDone | None = None
) -> dict[str, FactTotals]:
    """Compute the facts over one window, as `run_windows` does."""
    return run_windows(settings, [window], progress)


def _execute(
    job: JobDefinition, instance: DagsterInstance, window: Window
) -> ExecuteInProcessResult:
    run_id = str(uuid4())
    result = job.execute_in_process(
        instance=instance,
        run_id=run_id,
        # The command reports a failure itself; the daemon must not retry the run later.
        tags={**range_tags(window), **process_tags(run_id), MAX_RETRIES_TAG: "0"},
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        raise_on_error=False,
    )
    if not result.success:
        found = first_error(result.all_events)
        raise McqError(found or f"the run {result.run_id} failed; see it in the Dagster UI")
    return result


def _add(totals: dict[str, FactTotals], result: ExecuteInProcessResult) -> None:
    """Add the figures of a run; every hour of a ranged run has the figures of the whole run."""
    events = result.asset_materializations_for_node(STEP)
    for name, total in totals.items():
        event = next((event for event in events if event.asset_key == AssetKey(name)), None)
        if event is None:
            continue
        metadata = event.metadata
        total.rows_read += _number(metadata["rows_read"])
        total.rows_inserted += _number(metadata["rows_inserted"])
        total.rows_updated += _number(metadata["rows_updated"])
        total.rows_deleted += _number(metadata["rows_deleted"])
        for key, value in metadata.items():
            if key.startswith("seconds_") and isinstance(value, FloatMetadataValue):
                phase = key.removeprefix("seconds_")
                total.phases[phase] = total.phases.get(phase, 0.0) + (value.value or 0.0)


def _number(value: MetadataValue[Any]) -> int:
    return value.value or 0 if isinstance(value, IntMetadataValue) else 0
