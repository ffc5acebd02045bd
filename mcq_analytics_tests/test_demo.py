"""`demo`; and that commands write base rows in production only with --force."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
from dagster import AssetKey, DagsterInstance
from pyspark.sql import SparkSession

from mcq_analytics.definitions.build import build_definitions
from mcq_analytics.definitions.partitions import partition_key
from mcq_analytics.model.windows import HOUR
from mcq_analytics.postgres.database import Database
from mcq_analytics.settings import load_settings
from mcq_analytics_tests.commands import call, fails
from mcq_analytics_tests.facts_of import scalar, wrong_rows
from mcq_analytics_tests.servers import CHECKOUT


def test_the_demo_prints_the_facts_of_a_sample_and_computes_nothing_the_second_time(
    empty_database: Database,
    spark: SparkSession,
    instance: DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mcq_analytics.cli.demo.STUDENTS", 20)
    monkeypatch.setattr("mcq_analytics.cli.demo.HOURS", 6)
    first = call("demo", "--no-ui")
    assert first.exit_code == 0, first.output
    assert "generated " in first.stdout
    assert "the first hour is now " in first.stdout
    for fact in ("question_interaction_fact", "test_summary_fact", "test_funnel_fact"):
        assert f"{fact}: " in first.stdout
    assert wrong_rows(empty_database) == []
    attempts = scalar(empty_database, "SELECT count(*) FROM analytics.etl_metadata")
    second = call("demo", "--no-ui")
    assert second.exit_code == 0
    assert scalar(empty_database, "SELECT count(*) FROM analytics.etl_metadata") == attempts
    assert second.stdout in first.stdout


def test_the_first_hour_of_a_demo_holds_for_every_process_with_the_same_home(
    empty_database: Database,
    spark: SparkSession,
    instance: DagsterInstance,
    closed: datetime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mcq_analytics.cli.demo.STUDENTS", 5)
    monkeypatch.setattr("mcq_analytics.cli.demo.HOURS", 3)
    done = call("demo", "--no-ui")
    assert done.exit_code == 0, done.output
    told = subprocess.run(
        [sys.executable, "-m", "mcq_analytics", "status"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
    ).stdout
    assert [line.split("\t")[2] for line in told.splitlines()] == ["missing hours", "0", "0", "0"]
    assert call("run").stdout.startswith("nothing to do")
    first = closed - 3 * HOUR
    hours = (
        build_definitions(load_settings()).resolve_asset_graph().get(AssetKey("test_funnel_fact"))
    )
    assert hours.partitions_def is not None
    assert hours.partitions_def.get_first_partition_key() == partition_key(first)
    assert load_settings().partition_start == first


def in_production(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the test's database as production, with all settings that production requires."""
    monkeypatch.setenv("MCQ_ENV", "prod")
    monkeypatch.setenv("DB_PROD_URL", os.environ["DB_DEV_URL"])
    monkeypatch.setenv("MCQ_PARTITION_START", "2024-01-01T00:00")
    monkeypatch.setenv("MCQ_DAGSTER_WEBSERVER_URL", "https://facts.example")


FILLING = pytest.mark.parametrize(
    "arguments", [("load-csv", "csv"), ("generate", "--students", "3"), ("demo", "--no-ui")]
)


@FILLING
def test_base_rows_are_not_written_in_production_without_force(
    database: Database, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    in_production(monkeypatch)
    fails(call(*arguments), 2, f"{arguments[0]} writes rows", "MCQ_ENV is prod", "--force")
    assert scalar(database, "SELECT count(*) FROM answers") == 0
    assert scalar(database, "SELECT count(*) FROM analytics.etl_metadata") == 0
    assert "--force" in call(arguments[0], "--help").output
    assert "MCQ_ENV is prod" in call(arguments[0], "--help").output


def test_base_rows_are_written_in_production_with_force(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_production(monkeypatch)
    done = call("generate", "--students", "3", "--force")
    assert done.exit_code == 0, done.output
    assert scalar(database, "SELECT count(*) > 0 FROM answers") is True
    fails(call("load-csv", str(tmp_path / "nowhere"), "--force"), 2, "nowhere is not a folder")


def test_the_demo_runs_in_production_with_force(
    database: Database,
    spark: SparkSession,
    instance: DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mcq_analytics.cli.demo.STUDENTS", 5)
    monkeypatch.setattr("mcq_analytics.cli.demo.HOURS", 2)
    in_production(monkeypatch)
    done = call("demo", "--no-ui", "--force")
    assert done.exit_code == 0, done.output
    assert wrong_rows(database) == []
