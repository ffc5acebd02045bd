"""What Dagster loads: assets, lineage, partitions, the schedule and the sensors."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import datetime, timezone

import pytest
import yaml
from dagster import (
    AssetKey,
    BackfillPolicy,
    DagsterInstance,
    DefaultScheduleStatus,
    DefaultSensorStatus,
    Definitions,
    TableColumnDep,
    build_schedule_context,
    build_sensor_context,
)

from mcq_analytics.compute.handed_in import handed_in
from mcq_analytics.definitions.assets import column_lineage
from mcq_analytics.definitions.automation import OFF
from mcq_analytics.definitions.build import build_definitions
from mcq_analytics.definitions.resources import DatabaseResource
from mcq_analytics.model.facts import (
    FACTS,
    QUESTION_INTERACTION,
    SUBMISSION_COUNTS,
    TEST_FUNNEL,
    TEST_SUMMARY,
    Fact,
)
from mcq_analytics.postgres.database import Database
from mcq_analytics.quality.audit_statements import EXPECTED, SUMS
from mcq_analytics.settings import load_settings
from mcq_analytics_tests.facts_of import scalar
from mcq_analytics_tests.servers import CHECKOUT

SENSORS = {"alert_sensor", "late_data_sensor", "recovery_sensor"}
FACT_KEYS = [AssetKey(fact.name) for fact in FACTS]


@pytest.fixture
def definitions(instance: DagsterInstance) -> Definitions:
    # Dagster resolves definitions with the storage of the instance opened last.
    return build_definitions(load_settings())


def test_there_are_four_sources_and_three_facts(definitions: Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    assert {key.to_user_string() for key in graph.get_all_asset_keys()} == {
        "answers",
        "questions",
        "sessions",
        "submissions",
        *(fact.name for fact in FACTS),
    }
    assert set(graph.materializable_asset_keys) == set(FACT_KEYS)


def test_the_facts_are_one_step_that_cannot_be_split_and_one_run_at_a_time(
    definitions: Definitions,
) -> None:
    graph = definitions.resolve_asset_graph()
    [step] = {graph.get(key).assets_def for key in FACT_KEYS}
    assert set(step.keys) == set(FACT_KEYS)
    assert not step.can_subset
    assert step.backfill_policy == BackfillPolicy.single_run()
    assert step.op.pool == "facts"
    instance = yaml.safe_load((CHECKOUT / "dagster.yaml").read_text())
    assert instance["concurrency"]["pools"] == {"granularity": "run", "default_limit": 1}


def test_every_asset_has_columns_owners_kinds_and_a_description(definitions: Definitions) -> None:
    for spec in definitions.resolve_all_asset_specs():
        columns = spec.metadata["dagster/column_schema"].columns
        assert all(column.description for column in columns)
        assert spec.owners
        assert spec.kinds
        assert spec.description
        assert spec.group_name in ("testing_platform", "facts")
    for fact in FACTS:
        spec = next(s for s in definitions.resolve_all_asset_specs() if s.key.path == [fact.name])
        assert str(spec.code_version).isdigit()
        lineage = spec.metadata["dagster/column_lineage"].deps_by_column
        technical = {column.name for column in fact.technical}
        assert set(lineage) == {*fact.key, *fact.column_names, *technical}, (
            "definitions/assets.py, _SOURCES"
        )


@pytest.mark.parametrize("fact", [QUESTION_INTERACTION, TEST_SUMMARY], ids=lambda fact: fact.name)
def test_every_column_computed_from_valid_answers_depends_on_the_expiry(fact: Fact) -> None:
    lineage = column_lineage(fact).deps_by_column
    expiry = TableColumnDep(asset_key=AssetKey("sessions"), column_name="expiry_time")
    without = [name for name in fact.column_names if expiry not in lineage.get(name, [expiry])]
    assert without == [], "definitions/assets.py, _SOURCES: sessions.expiry_time is missing"


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.name)
def test_the_recompute_of_the_check_covers_every_column(fact: Fact) -> None:
    if fact is TEST_FUNNEL:
        # What each student's test adds is recomputed; the row of the test is compared with the sum.
        names = [column.name for column in SUBMISSION_COUNTS]
        expected = handed_in("sample")
        assert set(SUMS) == {column.name for column in (*fact.columns, *fact.technical)}
    else:
        names, expected = list(fact.column_names), EXPECTED[fact.name]
    without = [name for name in names if not re.search(rf"\b{name}\b", expected)]
    assert without == [], "quality/audit_statements.py, EXPECTED"


def test_the_lineage_names_columns_that_exist(definitions: Definitions) -> None:
    specs = {spec.key: spec for spec in definitions.resolve_all_asset_specs()}
    for fact in FACTS:
        lineage = specs[AssetKey(fact.name)].metadata["dagster/column_lineage"].deps_by_column
        for source in (dep for deps in lineage.values() for dep in deps):
            columns = specs[source.asset_key].metadata["dagster/column_schema"].columns
            assert source.column_name in {column.name for column in columns}
            assert source.asset_key.path[0] in fact.reads


def test_dagsters_own_command_refuses_one_fact_alone_with_a_hint(
    database: Database, instance: DagsterInstance
) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "dagster", "asset", "materialize"),
            *("-m", "mcq_analytics.definitions", "--select", QUESTION_INTERACTION.name),
            *("--partition", "2024-01-01-00:00"),
        ],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "Please select all asset and check keys produced by this asset" in done.stderr
    assert all(fact.name in done.stderr for fact in FACTS)
    assert scalar(database, "SELECT count(*) FROM analytics.etl_metadata") == 0
    assert instance.get_runs() == []


def test_partitions_start_at_the_configured_hour(
    instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MCQ_PARTITION_START", "2025-06-01T05:00+02:00")
    definition = (
        build_definitions(load_settings()).resolve_asset_graph().get(FACT_KEYS[0]).partitions_def
    )
    assert definition is not None
    assert definition.get_first_partition_key() == "2025-06-01-03:00"


def test_the_schedule_and_the_sensors_run_by_default(definitions: Definitions) -> None:
    repository = definitions.get_repository_def()
    [schedule] = repository.schedule_defs
    assert schedule.cron_schedule == "5 * * * *"
    assert schedule.execution_timezone == "UTC"
    assert schedule.default_status is DefaultScheduleStatus.RUNNING
    assert {sensor.name for sensor in repository.sensor_defs} == SENSORS
    for sensor in repository.sensor_defs:
        assert sensor.default_status is DefaultSensorStatus.RUNNING


@pytest.mark.parametrize(
    ("variables", "automated"),
    [
        ({"DAGSTER_IS_DEV_CLI": "1"}, True),
        ({"MCQ_AUTOMATION": "false"}, False),
        ({"MCQ_ENV": "prod"}, True),
        ({"MCQ_ENV": "prod", "DAGSTER_IS_DEV_CLI": "1"}, False),
        ({"MCQ_ENV": "prod", "DAGSTER_IS_DEV_CLI": "1", "MCQ_AUTOMATION": "true"}, True),
        ({"MCQ_ENV": "prod", "MCQ_AUTOMATION": "false"}, False),
    ],
)
def test_automation_is_off_under_dagster_dev_on_production(
    database: Database,
    instance: DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    automated: bool,
) -> None:
    """Ticks as a second daemon would make them, on an instance with hours to compute."""
    monkeypatch.setenv("DB_PROD_URL", os.environ["DB_DEV_URL"])
    monkeypatch.setenv("MCQ_PARTITION_START", "2024-01-01T00:00")
    monkeypatch.setenv("MCQ_DAGSTER_WEBSERVER_URL", "http://127.0.0.1:3000")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    definitions = build_definitions(load_settings())
    repository = definitions.get_repository_def()
    [hourly] = repository.schedule_defs
    sensors = repository.sensor_defs
    statuses = {hourly.default_status.value, *(one.default_status.value for one in sensors)}
    assert statuses == {"RUNNING" if automated else "STOPPED"}
    assert {one.name for one in sensors} == SENSORS
    with build_schedule_context(
        instance=instance,
        scheduled_execution_time=datetime.now(timezone.utc),
        repository_def=repository,
        resources={"database": DatabaseResource(settings=load_settings())},
    ) as context:
        tick = hourly.evaluate_tick(context)
    assert bool(tick.run_requests) is automated
    if not automated:
        assert tick.skip_message == OFF
        for one in sensors:
            with build_sensor_context(instance=instance, definitions=definitions) as looking:
                assert one.evaluate_tick(looking).skip_message == OFF
        for described in (hourly.description, *(one.description for one in sensors)):
            assert "MCQ_AUTOMATION=true" in str(described)
