"""Failed hours recover between the ticks of the schedule; `status` shows each with its cause.

The runs are real runs on a real instance.
"""

from __future__ import annotations

import time
from datetime import datetime

import pytest
from dagster import (
    AssetCheckEvaluation,
    AssetCheckSeverity,
    AssetKey,
    DagsterInstance,
    DagsterRunStatus,
    Definitions,
    RunRequest,
    job,
    op,
)
from dagster._core.execution.backfill import BulkActionStatus
from dagster._daemon.types import DaemonHeartbeat
from pyspark.sql import SparkSession

from mcq_analytics.definitions import checks
from mcq_analytics.definitions.build import FACTS_JOB, build_definitions
from mcq_analytics.definitions.partitions import partition_key, range_tags
from mcq_analytics.definitions.run_state import hour_outcomes, settled_events
from mcq_analytics.definitions.run_state.hour_outcomes import unfinished_hours, wrong_hours
from mcq_analytics.definitions.run_state.in_progress import hours_in_progress
from mcq_analytics.definitions.run_state.run_errors import Ending, ending_of
from mcq_analytics.launching import backfills
from mcq_analytics.model.facts import FACTS
from mcq_analytics.model.windows import HOUR, Window, last_closed_hour_end
from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.hours import hours_of_facts
from mcq_analytics.quality.verdicts import store_verdicts
from mcq_analytics.settings import load_settings
from mcq_analytics_tests.commands import call
from mcq_analytics_tests.facts_of import execute, scalar, wrong_rows
from mcq_analytics_tests.ticks import schedule_tick, sensor_tick

NAMES = [fact.name for fact in FACTS]
HOURS = 4


class Platform:
    """A platform whose first four hours of activity have just closed."""

    def __init__(
        self, database: Database, instance: DagsterInstance, patch: pytest.MonkeyPatch
    ) -> None:
        self.database, self.instance = database, instance
        self.first = last_closed_hour_end() - HOURS * HOUR
        patch.setenv("MCQ_PARTITION_START", f"{self.first:%Y-%m-%dT%H:%M}")
        self.cursor: str | None = None
        execute(
            database,
            "INSERT INTO answers SELECT n, n, n, 5, 1, 'A', "
            f"timestamptz '{self.first}' + n * interval '1 h' FROM generate_series(0, 3) n",
        )

    @property
    def definitions(self) -> Definitions:
        """The definitions for the current settings, loaded anew as each process does."""
        return build_definitions(load_settings())

    def tick(self) -> list[RunRequest]:
        data = sensor_tick(self.definitions, self.instance, "recovery_sensor", self.cursor)
        self.cursor = data.cursor
        return list(data.run_requests or [])

    def schedule_tick(self) -> list[RunRequest]:
        return schedule_tick(self.definitions, self.instance)

    def window(self, first: int, end: int) -> Window:
        return Window(self.first + first * HOUR, self.first + end * HOUR)

    def run(self, request: RunRequest) -> DagsterRunStatus:
        """Execute a request without retries, and return the status of its run."""
        done = self.definitions.resolve_job_def(FACTS_JOB).execute_in_process(
            instance=self.instance,
            tags={**request.tags, "dagster/max_retries": "0"},
            partition_key=request.partition_key,
            raise_on_error=False,
        )
        found = self.instance.get_run_by_id(done.run_id)
        assert found is not None
        return found.status

    def request(self, first: int, end: int) -> RunRequest:
        return RunRequest(tags=range_tags(self.window(first, end)))


@pytest.fixture
def platform(
    database: Database, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> Platform:
    return Platform(database, instance, monkeypatch)


@pytest.mark.usefixtures("spark")
def test_a_bad_hour_is_isolated_in_a_few_ticks_and_its_neighbours_succeed(
    platform: Platform,
) -> None:
    execute(
        platform.database,
        "CREATE FUNCTION bad() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF NEW.student_id = 2 THEN RAISE 'a bad hour'; END IF; RETURN NEW; END $$",
        "CREATE TRIGGER bad BEFORE INSERT ON analytics.question_interaction_fact "
        "FOR EACH ROW EXECUTE FUNCTION bad()",
    )
    assert platform.run(platform.request(0, HOURS)) is DagsterRunStatus.FAILURE
    requested = []
    while found := platform.tick():
        for request in found:
            requested.append(request)
            platform.run(request)
        assert len(requested) <= 4
    hours = [platform.first + n * HOUR for n in range(HOURS)]
    for known in hours_of_facts(platform.database.engine(), load_settings(), NAMES).values():
        assert known.done(hours) == {*hours} - {hours[2]}
    # A bad hour that is isolated is left to the schedule.
    [left] = platform.schedule_tick()
    assert left.partition_key == f"{platform.first + 2 * HOUR:%Y-%m-%d-%H:%M}"


def test_open_hours_are_requested_as_soon_as_the_database_is_back(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert platform.tick() == []
    with monkeypatch.context() as away:
        gone = platform.database.url.set(database="gone").render_as_string(hide_password=False)
        away.setenv("DB_DEV_URL", gone)
        assert platform.run(platform.request(0, 1)) is DagsterRunStatus.FAILURE
        assert platform.tick() == []
        assert platform.tick() == []
    [request] = [one for one in platform.tick() if one.partition_key]
    assert request.partition_key == f"{platform.first:%Y-%m-%d-%H:%M}"
    assert platform.tick() == []


def test_status_includes_failures_that_only_dagster_recorded_each_with_its_cause(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as away:
        gone = platform.database.url.set(database="gone").render_as_string(hide_password=False)
        away.setenv("DB_DEV_URL", gone)
        platform.run(platform.request(0, 1))
    execute(platform.database, "ALTER TABLE answers RENAME COLUMN session_id TO sitting_id")
    platform.run(platform.request(2, 4))
    shown = call("status")
    assert shown.exit_code == 1
    rows = {row.split("\t")[0]: row.split("\t")[1:] for row in shown.stdout.splitlines()}
    assert [rows[name][2] for name in NAMES] == ["3", "3", "3"]
    # Once for all facts.
    [newest, oldest] = shown.stderr.splitlines()
    assert newest.startswith("the facts failed over ")
    assert f"failed over {platform.window(2, 4)}, last at " in newest
    assert "the base table public.answers has no column session_id" in newest
    assert f"failed over {platform.window(0, 1)}, last at " in oldest
    assert 'database "gone" does not exist' in oldest


@pytest.mark.usefixtures("spark")
def test_a_cancelled_run_leaves_hours_as_they_were_and_is_not_requested_again(
    platform: Platform,
) -> None:
    assert platform.run(platform.request(0, 2)) is DagsterRunStatus.SUCCESS
    for first, end in ((0, 2), (2, 4)):
        run = platform.instance.create_run_for_job(
            platform.definitions.resolve_job_def(FACTS_JOB),
            tags=range_tags(platform.window(first, end)),
        )
        platform.instance.report_run_canceled(run)
    shown = call("status")
    assert shown.exit_code == 0, shown.output
    for row in shown.stdout.splitlines()[1:]:
        _, last, missing, failed, lag, _ = row.split("\t")
        assert (last, missing, failed, lag) == (
            f"{platform.first + HOUR:%Y-%m-%dT%H:%MZ}",
            *("2", "0", "2 h"),
        )
    assert platform.schedule_tick() == []
    assert platform.tick() == []
    # A manual run computes them.
    assert platform.run(platform.request(2, 4)) is DagsterRunStatus.SUCCESS
    assert wrong_rows(platform.database) == []
    cancelled = "SELECT count(*) FROM analytics.etl_metadata WHERE status = 'cancelled'"
    assert scalar(platform.database, cancelled) == 2 * len(NAMES)


def test_a_wrong_hour_stays_wrong_however_many_checks_of_other_hours_follow(
    platform: Platform, spark: SparkSession
) -> None:
    hour = platform.window(0, 1)
    said = {checks.RECOMPUTED: "rows wrong: 1"}
    with platform.database.engine().begin() as connection:
        store_verdicts(connection, "analytics", FACTS[0], hour, run_id="the-run", verdicts=said)
    for _ in range(510):
        platform.instance.report_runless_asset_event(
            AssetCheckEvaluation(
                asset_key=AssetKey(FACTS[0].name),
                check_name=checks.RECOMPUTED,
                passed=True,
                severity=AssetCheckSeverity.ERROR,
                metadata={},
            )
        )

    def wrong() -> dict[datetime, str]:
        found = wrong_hours(platform.instance, platform.database.engine(), load_settings())
        return {hour: failure.text for hour, failure in found[FACTS[0].name].items()}

    assert wrong() == {hour.start: "rows wrong: 1"}
    everything = platform.window(0, HOURS)
    execute(
        platform.database,
        "INSERT INTO analytics.etl_metadata (pipeline_name, window_start, window_end, status, "
        f"started_at, finished_at) SELECT name, '{everything.start}', '{everything.end}', "
        f"'success', now(), now() FROM unnest(ARRAY{NAMES}) name",
    )
    [request] = platform.schedule_tick()
    assert request.partition_key == partition_key(hour.start)
    # It is right again after a run whose checks pass.
    assert platform.run(platform.request(0, 1)) is DagsterRunStatus.SUCCESS
    assert wrong() == {}
    assert unfinished_hours(platform.instance).failed() == set()


@pytest.mark.usefixtures("spark")
def test_open_hours_are_found_though_events_of_settled_ones_are_not_read_again(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settled_events, "SETTLING_SECONDS", 0)
    monkeypatch.setattr(settled_events, "STEP", 1)
    before = 0

    def open_hours() -> list[int]:
        found = unfinished_hours(platform.instance).runs
        settled = settled_events.settled_until(platform.instance)
        with monkeypatch.context() as patch:
            patch.setattr(hour_outcomes, "settled_until", lambda _: None)
            assert unfinished_hours(platform.instance).runs == found
        assert settled_events.settled_until(platform.instance) == settled
        return sorted((hour - platform.first) // HOUR for hour in found)

    def has_moved_on() -> bool:
        nonlocal before
        before, last = settled_events.settled_until(platform.instance) or 0, before
        return before > last

    assert platform.run(platform.request(0, 2)) is DagsterRunStatus.SUCCESS
    assert open_hours() == []
    assert has_moved_on()
    execute(platform.database, "ALTER TABLE answers RENAME COLUMN session_id TO sitting_id")
    assert platform.run(platform.request(1, 3)) is DagsterRunStatus.FAILURE
    execute(platform.database, "ALTER TABLE answers RENAME COLUMN sitting_id TO session_id")
    assert open_hours() == [1, 2]
    assert platform.run(platform.request(3, 4)) is DagsterRunStatus.SUCCESS
    assert platform.run(platform.request(1, 2)) is DagsterRunStatus.SUCCESS
    assert open_hours() == [2]
    # It may move up to the events of the hour that is open, and not further.
    has_moved_on()
    assert open_hours() == [2]
    assert not has_moved_on()
    assert platform.run(platform.request(2, 3)) is DagsterRunStatus.SUCCESS
    assert open_hours() == []
    assert has_moved_on()


def test_a_backfill_keeps_its_hours_however_many_backfills_follow(platform: Platform) -> None:
    settings, window = load_settings(), platform.window(0, HOURS)
    platform.instance.add_daemon_heartbeat(DaemonHeartbeat(time.time(), "BACKFILL", "here", []))
    pieces = backfills.plan(platform.instance, platform.database, settings, window, chunk=HOURS)
    [first] = backfills.submit(platform.instance, settings, pieces)
    begun = platform.instance.get_backfill(first)
    assert begun is not None
    for number in range(110):
        ended = begun._replace(
            backfill_id=f"later{number}", status=BulkActionStatus.COMPLETED_SUCCESS
        )
        platform.instance.add_backfill(ended)
    assert hours_in_progress(platform.instance) == {*window.starts()}
    assert platform.schedule_tick() == []


def test_ctrl_c_passed_on_by_spark_is_not_a_failure(instance: DagsterInstance) -> None:
    """Once a session has started, Spark handles the signal instead of Dagster."""

    @op
    def interrupted() -> None:
        raise KeyboardInterrupt

    @job
    def stopped() -> None:
        interrupted()

    with pytest.raises(KeyboardInterrupt):
        stopped.execute_in_process(instance=instance, run_id="00000000-0000-4000-8000-000000000001")
    assert ending_of(instance, instance.get_runs()[0].run_id) is Ending.STOPPED
