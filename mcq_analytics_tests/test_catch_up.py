"""No hour is missed, and late data heals: what the schedule and the late data sensor request."""

from __future__ import annotations

from datetime import datetime

import pytest
from dagster import (
    AssetKey,
    AssetMaterialization,
    DagsterEvent,
    DagsterEventType,
    DagsterRunStatus,
    RunRequest,
)
from dagster._core.events import StepMaterializationData
from pyspark.sql import SparkSession

from mcq_analytics.definitions.build import FACTS_JOB
from mcq_analytics.definitions.partitions import hourly_partitions, partition_key, range_tags
from mcq_analytics.model.facts import FACTS
from mcq_analytics.model.windows import HOUR, Window
from mcq_analytics_tests.commands import call
from mcq_analytics_tests.depth import in_turns
from mcq_analytics_tests.facts_of import TABLES, contents, execute, run_facts, wrong_rows
from mcq_analytics_tests.platforms import Platform

pytest_plugins = ("mcq_analytics_tests.platform_fixtures",)
NAMES = [fact.name for fact in FACTS]


def test_after_a_downtime_of_the_daemon_every_hour_runs_once(platform: Platform) -> None:
    execute(
        platform.database,
        "DELETE FROM analytics.etl_metadata",
        f"TRUNCATE {', '.join(f'analytics.{table}' for table in TABLES)}",
    )
    first_ten = Window(platform.first, platform.first + 10 * HOUR)
    platform.carry_out([RunRequest(tags=range_tags(first_ten))])
    missed = platform.schedule_tick()
    [(first, last)] = platform.hours(missed)
    assert first == 10
    assert last - first + 1 >= 30
    platform.carry_out(missed)
    assert platform.sensor_tick() == []
    for name in NAMES:
        assert platform.attempts(name)[:40] == [1] * 40
    assert wrong_rows(platform.database) == []


def test_hours_in_progress_are_not_requested_and_failed_hours_are(platform: Platform) -> None:
    execute(platform.database, "UPDATE analytics.etl_metadata SET status = 'failed'")
    run = platform.instance.create_run_for_job(
        platform.definitions.resolve_job_def(FACTS_JOB),
        status=DagsterRunStatus.STARTED,
        tags=range_tags(Window(platform.first + 3 * HOUR, platform.first + 31 * HOUR)),
    )

    def requested() -> list[int]:
        return [first for first, _ in platform.hours(platform.schedule_tick())]

    # The eighty hours failed in one window: each half gets a run of its own.
    assert requested() == [0, 31, 40]
    platform.instance.report_run_failed(run)
    # The eighty hours failed in one window: each half gets a run of its own.
    assert requested() == [0, 31, 40]
    platform.instance.add_run_tags(run.run_id, {"dagster/will_retry": "false"})
    assert requested() == [0, 3, 17, 31, 40]


@pytest.mark.parametrize(
    ("known", "ends"),
    in_turns([(), tuple(NAMES[:1]), tuple(NAMES[:2])], ["killed", "stopped"]),
)
def test_an_hour_that_was_stored_but_that_dagster_does_not_know_of_is_computed_again(
    platform: Platform, known: tuple[str, ...], ends: str
) -> None:
    """As after a kill, or Ctrl-C, between the commit and Dagster's records of the facts."""
    hour = platform.first + 5 * HOUR
    run = platform.instance.create_run_for_job(
        platform.definitions.resolve_job_def(FACTS_JOB),
        tags={"dagster/partition": partition_key(hour)},
    )
    execute(
        platform.database,
        "INSERT INTO analytics.etl_metadata (pipeline_name, window_start, window_end, status, "
        f"started_at, finished_at, run_id) SELECT name, '{hour}', '{hour + HOUR}', 'success', "
        f"now(), now(), '{run.run_id}' FROM unnest(ARRAY{NAMES}) name",
    )
    for name in known:
        made = AssetMaterialization(name, partition=partition_key(hour))
        event = DagsterEvent(
            DagsterEventType.ASSET_MATERIALIZATION.value,
            FACTS_JOB,
            event_specific_data=StepMaterializationData(made),
        )
        platform.instance.report_dagster_event(event, run_id=run.run_id)
    if ends == "killed":
        platform.instance.report_run_failed(run)
        platform.instance.add_run_tags(run.run_id, {"dagster/will_retry": "false"})
    else:
        platform.instance.report_run_canceled(run)

    def reported() -> list[tuple[str, str | None]]:
        statuses = {
            name: (
                platform.instance.get_status_by_partition(
                    AssetKey(name), [partition_key(hour)], hourly_partitions(platform.first)
                )
                or {}
            )[partition_key(hour)]
            for name in NAMES
        }
        failed = [row.split("\t")[3] for row in call("status").stdout.splitlines()[1:]]
        return [
            (count, status.value if status else None)
            for count, status in zip(failed, statuses.values(), strict=True)
        ]

    unknown = len(NAMES) - len(known)
    by_dagster = "FAILED" if ends == "killed" else None
    assert reported() == [("1", "MATERIALIZED")] * len(known) + [("1", by_dagster)] * unknown
    assert "the next run over these hours completes the record" in call("status").stderr
    request = platform.schedule_tick()[0]
    assert platform.hours([request]) == [(5, 5)]
    # Of all facts: the job has no selection.
    assert request.asset_selection is None
    before = contents(platform.database)
    platform.carry_out([request])
    assert contents(platform.database) == before
    assert reported() == [("0", "MATERIALIZED")] * len(NAMES)
    assert (5, 5) not in platform.hours(platform.schedule_tick())


def test_without_a_database_the_newest_hour_is_requested_so_that_its_failure_shows(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, closed: datetime
) -> None:
    monkeypatch.setenv("DB_DEV_URL", "postgresql://nobody@127.0.0.1:1/nothing")
    [request] = platform.schedule_tick()
    assert request.partition_key == partition_key(closed - HOUR)


def test_late_rows_in_three_old_hours_run_only_these_hours_again_and_only_once(
    platform: Platform,
) -> None:
    assert platform.sensor_tick() == []
    execute(
        platform.database,
        f"INSERT INTO answers VALUES (100, 9, 1, 7, 5, 'B', timestamptz '{platform.first}' "
        "+ interval '5 hours 10 minutes')",
        "UPDATE answers SET submitted_option = 'C' WHERE answer_id = 17",
        "DELETE FROM answers WHERE answer_id = 29",
    )
    assert wrong_rows(platform.database) != []
    late = platform.sensor_tick()
    assert platform.hours(late) == [(5, 5), (17, 17), (29, 29)]
    assert [request.asset_selection for request in late] == [None, None, None]
    observed = platform.instance.fetch_observations(AssetKey("answers"), limit=3).records
    assert {record.partition_key for record in observed} == {
        partition_key(platform.first + hour * HOUR) for hour in (5, 17, 29)
    }
    platform.carry_out(late)
    assert wrong_rows(platform.database) == []
    assert platform.sensor_tick() == []
    assert sum(platform.attempts("test_summary_fact")) == 43


def test_a_late_submission_runs_its_hour_again_and_changes_the_funnel_alone(
    platform: Platform,
) -> None:
    before = contents(platform.database)
    execute(
        platform.database,
        "UPDATE submissions SET completion_status = 'timeout' "
        f"WHERE submit_time < timestamptz '{platform.first}' + interval '1 hour'",
    )
    [late] = platform.sensor_tick()
    assert platform.hours([late]) == [(0, 0)]
    platform.carry_out([late])
    assert wrong_rows(platform.database) == []
    after = contents(platform.database)
    changed = {table for table in TABLES if after[table] != before[table]}
    assert changed == {"test_funnel_fact", "student_test_submissions"}
    assert platform.sensor_tick() == []


def test_corrections_are_found_no_matter_how_old_the_answers_are(
    platform: Platform, spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MCQ_LOOKBACK_HOURS", "12")
    monkeypatch.setenv("MCQ_AUDIT_HOURS", "20")
    assert platform.sensor_tick() == []
    platform.cursor = None
    execute(
        platform.database,
        "UPDATE sessions SET expiry_time = expiry_time - interval '40 min' WHERE session_id = 3",
        "UPDATE sessions SET expiry_time = expiry_time + interval '1 min' WHERE session_id = 4",
        "DELETE FROM sessions WHERE session_id = 5",
    )
    assert platform.hours(platform.sensor_tick()) == [(3, 3)]
    run_facts(
        platform.database, spark, Window(platform.first + 3 * HOUR, platform.first + 4 * HOUR)
    )
    assert wrong_rows(platform.database) == []
    monkeypatch.setenv("MCQ_LOOKBACK_HOURS", "1")
    monkeypatch.setenv("MCQ_AUDIT_HOURS", "0")
    assert platform.sensor_tick() == []
    execute(platform.database, "UPDATE questions SET correct_option = 'B' WHERE question_id = 2")
    wanted = platform.sensor_tick()
    assert wanted != []
    assert platform.hours(platform.sensor_tick()) == platform.hours(wanted)
    platform.carry_out(wanted)
    assert wrong_rows(platform.database) == []
    assert platform.sensor_tick() == []


def test_a_failed_hour_is_left_to_the_schedule(platform: Platform) -> None:
    execute(
        platform.database,
        "UPDATE answers SET submitted_option = 'C' WHERE answer_id = 17",
        "INSERT INTO analytics.etl_metadata (pipeline_name, window_start, window_end, status, "
        f"started_at, finished_at) SELECT name, timestamptz '{platform.first}' + interval '17 h', "
        f"timestamptz '{platform.first}' + interval '18 h', 'failed', now(), now() "
        f"FROM unnest(ARRAY{NAMES}) name",
    )
    assert platform.sensor_tick() == []
    assert (17, 17) in platform.hours(platform.schedule_tick())
