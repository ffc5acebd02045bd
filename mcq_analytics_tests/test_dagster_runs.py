"""Runs of the facts through Dagster: what they compute, record, and show when they fail."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from dagster import AssetKey, DagsterInstance
from pyspark.sql import SparkSession
from sqlalchemy import Engine, event

from mcq_analytics.definitions.build import FACTS_JOB, build_definitions
from mcq_analytics.definitions.partitions import range_tags
from mcq_analytics.errors import McqError
from mcq_analytics.instance.storage import BatchingEventLogStorage
from mcq_analytics.launching import in_process
from mcq_analytics.model.facts import FACTS
from mcq_analytics.postgres.database import Database
from mcq_analytics.settings import load_settings
from mcq_analytics_tests.facts_of import execute, scalar, window, wrong_rows
from mcq_analytics_tests.servers import CHECKOUT

FACT_KEYS = [AssetKey(fact.name) for fact in FACTS]
THREE_HOURS = window("2024-01-01T09", "2024-01-01T12")


@pytest.fixture
def answered(database: Database) -> Database:
    """A database with answers and a submission in two of three hours."""
    execute(
        database,
        "INSERT INTO answers VALUES (1, 7, 3, 5, 1, 'A', '2024-01-01 09:10Z'), "
        "(2, 7, 4, 5, 1, 'B', '2024-01-01 11:10Z')",
        "INSERT INTO questions VALUES (3, 'A')",
        "INSERT INTO submissions VALUES (7, 5, '2024-01-01 11:20Z', 'completed')",
    )
    return database


def test_one_run_covers_a_range_and_materializes_every_hour(
    answered: Database, spark: SparkSession, instance: DagsterInstance
) -> None:
    totals = in_process.run_window(load_settings(), THREE_HOURS)
    assert {name: total.rows_inserted for name, total in totals.items()} == {
        "question_interaction_fact": 2,
        "test_summary_fact": 1,
        "test_funnel_fact": 1,
    }
    assert wrong_rows(answered) == []
    [run] = instance.get_runs(limit=1)
    assert run.job_name == FACTS_JOB
    for key in FACT_KEYS:
        done = instance.get_materialized_partitions(key)
        assert {"2024-01-01-09:00", "2024-01-01-10:00", "2024-01-01-11:00"} <= done
    record = instance.get_latest_materialization_event(FACT_KEYS[0])
    assert record is not None
    assert record.asset_materialization is not None
    metadata = record.asset_materialization.metadata
    assert metadata["rows_inserted"].value == 2
    assert metadata["rows_read"].value == 4  # two answers, a question and a submission
    assert {"seconds_wait", "seconds_select", "seconds_compute", "seconds_write"} <= set(metadata)
    assert str(metadata["dagster/table_name"].value).endswith("analytics.question_interaction_fact")


def test_a_long_window_is_cut_into_runs_and_reports_progress(
    answered: Database,
    spark: SparkSession,
    instance: DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(in_process, "HOURS_PER_RUN", 2)
    seen: list[int] = []
    in_process.run_window(load_settings(), THREE_HOURS, lambda hours, _: seen.append(hours))
    assert seen == [2, 1]
    assert scalar(answered, "SELECT count(*) FROM analytics.etl_metadata") == 6
    assert wrong_rows(answered) == []


def test_a_process_with_a_small_and_a_large_window_starts_java_for_the_large_one(
    answered: Database, instance: DagsterInstance
) -> None:
    execute(
        answered,
        "INSERT INTO answers SELECT n, n % 5, n % 3, 5, 1, 'A', '2024-01-01 10:10Z' "
        "FROM generate_series(3, 1002) n",
        "ANALYZE answers",
    )
    done = subprocess.run(
        [sys.executable, "-m", "mcq_analytics_tests.java_of_runs"],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    java, whole_stage = done.stdout.splitlines()
    assert "log4j2" in java
    assert "TieredStopAtLevel" not in java
    assert "UseSerialGC" not in java
    assert whole_stage == "true"
    assert scalar(answered, "SELECT count(*) FROM analytics.etl_metadata") == 6


def test_a_failed_run_reports_one_line_and_shows_no_password(
    answered: Database,
    spark: SparkSession,
    instance: DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    execute(answered, "ALTER TABLE answers RENAME COLUMN test_id TO exam_id")
    secret = answered.url.set(password="s3cret-p4ss").render_as_string(hide_password=False)
    monkeypatch.setenv("DB_DEV_URL", secret)
    said = r"public\.answers has no column test_id, but exam_id: if it was renamed"
    with pytest.raises(McqError, match=said) as failure:
        in_process.run_window(load_settings(), THREE_HOURS)
    assert "\n" not in str(failure.value)
    assert scalar(
        answered, "SELECT count(*) FROM analytics.etl_metadata WHERE status = 'failed'"
    ) == len(FACTS)
    [run] = instance.get_runs(limit=1)
    events = "".join(map(repr, instance.all_logs(run.run_id)))
    assert "has no column test_id" in events
    assert "s3cret" not in events + str(run.run_config)


def test_an_asset_that_fails_between_input_and_output_frees_its_lock(
    answered: Database,
    spark: SparkSession,
    instance: DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("the transform is broken")

    with monkeypatch.context() as patched:
        patched.setattr("mcq_analytics.definitions.assets.student_tests", broken)
        with pytest.raises(McqError, match="the transform is broken"):
            in_process.run_window(load_settings(), THREE_HOURS)
    assert "before its rows were stored" in str(
        scalar(
            answered, "SELECT DISTINCT error FROM analytics.etl_metadata WHERE status = 'failed'"
        )
    )
    in_process.run_window(load_settings(), THREE_HOURS)
    assert wrong_rows(answered) == []


def test_an_asset_that_is_cancelled_between_input_and_output_is_recorded_as_cancelled(
    answered: Database,
    spark: SparkSession,
    instance: DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def cancelled(*_: object) -> None:
        [run] = instance.get_runs(limit=1)
        instance.report_run_canceling(run)
        raise ValueError("the step is ended")

    monkeypatch.setattr("mcq_analytics.definitions.assets.student_tests", cancelled)
    with pytest.raises(McqError):
        in_process.run_window(load_settings(), THREE_HOURS)
    ended = "SELECT string_agg(status, ' ') FROM analytics.etl_metadata"
    assert scalar(answered, ended) == "cancelled cancelled cancelled"
    locks = (
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = "
        "(SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    assert scalar(answered, locks) == 0


def test_planned_events_are_stored_as_dagster_stores_them(
    answered: Database,
    spark: SparkSession,
    instance: DagsterInstance,
    request: pytest.FixtureRequest,
) -> None:
    """Every hour has a planned event, and a failed range fails each of its hours."""
    assert isinstance(instance.event_log_storage, BatchingEventLogStorage)
    inserts = []

    def note(_: object, __: object, statement: str, values: object, *___: object) -> None:
        if "INSERT INTO event_logs" in statement and "_MATERIALIZATION_PLANNED'" in str(values):
            inserts.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    request.addfinalizer(lambda: event.remove(Engine, "before_cursor_execute", note))
    execute(answered, "ALTER TABLE answers RENAME COLUMN test_id TO exam_id")
    with pytest.raises(McqError):
        in_process.run_window(load_settings(), window("2024-02-01T00", "2024-02-01T03"))
    definition = (
        build_definitions(load_settings()).resolve_asset_graph().get(FACT_KEYS[0]).partitions_def
    )
    keys = ["2024-02-01-00:00", "2024-02-01-01:00", "2024-02-01-02:00"]
    statuses = instance.get_status_by_partition(FACT_KEYS[0], keys, definition)  # type: ignore[arg-type]
    assert statuses is not None
    assert {str(statuses[key]) for key in keys} == {"AssetPartitionStatus.FAILED"}
    assert len(inserts) == 1  # though checks are planned among the hours


def test_a_check_keeps_its_latest_evaluation_when_another_is_planned(
    answered: Database, spark: SparkSession, instance: DagsterInstance
) -> None:
    job = build_definitions(load_settings()).resolve_job_def(FACTS_JOB)
    in_process.run_window(load_settings(), THREE_HOURS)
    [run] = instance.get_runs(limit=1)
    instance.create_run_for_job(job, tags=range_tags(window("2024-01-01T12", "2024-01-01T15")))
    checks = job.asset_layer.asset_graph.asset_check_keys
    storage = instance.event_log_storage
    latest = storage.get_latest_asset_check_execution_by_key(list(checks))
    assert {key.asset_key for key in latest} == set(FACT_KEYS)
    assert {record.run_id for record in latest.values()} == {run.run_id}
    assert {record.status.value for record in latest.values()} <= {"SUCCEEDED", "FAILED"}
    for key in checks:
        assert len(storage.get_asset_check_execution_history(key, limit=10)) == 1
