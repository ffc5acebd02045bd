"""`etl_metadata` and Dagster's partitions tell the same of every hour, whatever has happened."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from datetime import datetime

import pytest
from dagster import AssetKey, DagsterInstance
from pyspark.sql import SparkSession
from sqlalchemy import text

from mcq_analytics.compute.attempt import lock_key
from mcq_analytics.definitions.build import FACTS_JOB, build_definitions
from mcq_analytics.definitions.partitions import hour_of, partition_key, range_tags
from mcq_analytics.definitions.run_state.hour_outcomes import unfinished_hours
from mcq_analytics.errors import McqError
from mcq_analytics.launching import in_process
from mcq_analytics.model.facts import FACTS
from mcq_analytics.model.windows import HOUR, Window, format_hour, parse_hour
from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.fact_tables import FAILED, SUCCESS
from mcq_analytics.postgres.hours import hour_statuses
from mcq_analytics.postgres.metadata import get_last_successful_runs, get_time_range
from mcq_analytics.settings import load_settings
from mcq_analytics_tests.conftest import CHECKOUT
from mcq_analytics_tests.facts_of import execute, scalar, wrong_rows
from mcq_analytics_tests.servers import wait_until

FIRST = parse_hour("2024-01-01T00:00")
SPAN = Window(FIRST, FIRST + 12 * HOUR)
BREAK = (
    "CREATE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'broken'; END $$",
    "CREATE TRIGGER broken BEFORE INSERT ON analytics.test_funnel_fact EXECUTE FUNCTION broken()",
)
MEND = "DROP FUNCTION broken CASCADE"


def told_by_etl_metadata(database: Database) -> dict[str, dict[datetime, str]]:
    return {
        fact.name: hour_statuses(database.engine(), fact.name, load_settings()) for fact in FACTS
    }


def told_by_dagster(instance: DagsterInstance) -> dict[str, dict[datetime, str]]:
    failed = unfinished_hours(instance).failed()
    return {
        fact.name: {
            **{
                hour_of(key): SUCCESS
                for key in instance.get_materialized_partitions(AssetKey(fact.name))
            },
            **dict.fromkeys(failed[fact.name], FAILED),
        }
        for fact in FACTS
    }


def end_a_run(database: Database, window: Window, by: signal.Signals) -> None:
    """Run a window in a process of its own, and end that while it is at its first fact."""
    bounds = ["--start", format_hour(window.start), "--end", format_hour(window.end)]
    process = subprocess.Popen(
        [sys.executable, "-m", "mcq_analytics", "run", *bounds],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    wait_until(lambda: bool(scalar(database, "SELECT count(*) FROM analytics.running_attempt")))
    process.send_signal(by)
    process.wait()


class Steps:
    """What may become of runs over some of twelve hours."""

    def __init__(
        self, database: Database, instance: DagsterInstance, patch: pytest.MonkeyPatch
    ) -> None:
        self.database, self.instance, self.patch = database, instance, patch
        self.chance = random.Random("agreement")
        self.cancelled: set[datetime] = set()

    def some_hours(self) -> Window:
        start = FIRST + self.chance.randrange(12) * HOUR
        return Window(start, min(SPAN.end, start + self.chance.randint(1, 6) * HOUR))

    def cancelled_hours(self) -> Window:
        window = self.some_hours()
        self.cancelled.update(window.starts())
        return window

    def passing(self) -> None:
        in_process.run_window(load_settings(), self.some_hours())

    def failing(self) -> None:
        execute(self.database, *BREAK)
        with pytest.raises(McqError, match="broken"):
            in_process.run_window(load_settings(), self.some_hours())
        execute(self.database, MEND)

    def dying(self) -> None:
        end_a_run(self.database, self.some_hours(), signal.SIGKILL)

    def without_a_database(self) -> None:
        with self.patch.context() as away:
            gone = self.database.url.set(database="gone").render_as_string(hide_password=False)
            away.setenv("DB_DEV_URL", gone)
            build_definitions().resolve_job_def(FACTS_JOB).execute_in_process(
                instance=self.instance,
                tags={**range_tags(self.some_hours()), "dagster/max_retries": "0"},
                raise_on_error=False,
            )

    def stopped_by_hand(self) -> None:
        end_a_run(self.database, self.cancelled_hours(), signal.SIGINT)

    def cancelled_in_the_queue(self) -> None:
        waiting = self.instance.create_run_for_job(
            build_definitions().resolve_job_def(FACTS_JOB),
            tags=range_tags(self.cancelled_hours()),
            asset_selection=frozenset(AssetKey(fact.name) for fact in FACTS),
        )
        self.instance.report_run_canceled(waiting)

    def waiting_in_vain(self) -> None:
        key = {"key": lock_key("analytics", FACTS[0])}
        with self.patch.context() as hasty, self.database.engine().connect() as holder:
            hasty.setenv("MCQ_LOCK_TIMEOUT", "0")
            holder.execute(text("SELECT pg_advisory_lock(:key)"), key)
            with pytest.raises(McqError, match="waited 0 s"):
                in_process.run_window(load_settings(), self.some_hours())


@pytest.mark.timeout(300)
def test_both_tell_the_same_after_runs_that_passed_failed_died_were_stopped_and_never_began(
    database: Database,
    spark: SparkSession,
    instance: DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    execute(
        database,
        "INSERT INTO answers SELECT n, n % 3, n, 5, 1, 'A', "
        f"timestamptz '{FIRST}' + n * interval '30 min' FROM generate_series(0, 23) n",
        "INSERT INTO submissions SELECT n, 5, "
        f"timestamptz '{FIRST}' + n * interval '1 h', 'completed' FROM generate_series(0, 11) n",
    )
    steps = Steps(database, instance, monkeypatch)
    order = [
        *(steps.passing, steps.dying, steps.without_a_database, steps.stopped_by_hand),
        *(steps.cancelled_in_the_queue, steps.waiting_in_vain),
    ]
    steps.chance.shuffle(order)
    for step in (*order, steps.failing):
        step()
    # The next run records what it finds, as the schedule's tick does.
    in_process.run_window(load_settings(), Window(SPAN.end, SPAN.end + HOUR))

    told, shown = told_by_etl_metadata(database), told_by_dagster(instance)
    for fact in FACTS:
        # Of an hour that failed, and over which a later run was stopped, Dagster keeps no failure.
        for hour in steps.cancelled:
            if told[fact.name].get(hour) == FAILED:
                shown[fact.name][hour] = FAILED
    assert told == shown
    assert {FAILED, SUCCESS} <= {status for hours in told.values() for status in hours.values()}
    stopped = "SELECT count(DISTINCT run_id) FROM analytics.etl_metadata WHERE status = 'cancelled'"
    assert scalar(database, stopped) in (1, 2)  # one over which others ran before it was seen
    errors = str(scalar(database, "SELECT string_agg(error, '\n') FROM analytics.etl_metadata"))
    for what in ("broken", "died", "gone", "somebody cancelled"):
        assert what in errors
    assert "waited" not in errors
    for fact in FACTS:
        latest = get_last_successful_runs(database.engine(), fact.name, limit=1)
        assert [attempt.window.end for attempt in latest] == [SPAN.end + HOUR]
        start, _ = get_time_range(database.engine(), fact.name)
        assert told[fact.name].get(start) != SUCCESS

    in_process.run_window(load_settings(), SPAN)
    assert wrong_rows(database) == []
    assert told_by_etl_metadata(database) == told_by_dagster(instance)
    assert partition_key(FIRST) in instance.get_materialized_partitions(AssetKey(FACTS[0].name))
