"""Backfills: their plans, and their runs by a daemon, started in each of the three ways."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import psutil
import pytest
from dagster import AssetKey, DagsterInstance, DagsterRunStatus
from pyspark.sql import SparkSession
from sqlalchemy import text
from sqlalchemy.engine import URL

from mcq_analytics.cli.app import main
from mcq_analytics.definitions.partitions import partition_key
from mcq_analytics.launching.backfills import plan
from mcq_analytics.model.facts import FACTS, IdType
from mcq_analytics.model.windows import HOUR, Window, last_closed_hour_end, parse_hour
from mcq_analytics.postgres.database import Database
from mcq_analytics.settings import load_settings
from mcq_analytics_tests.backfill_platform import Platform
from mcq_analytics_tests.conftest import create_database, drop_database, opened_instance
from mcq_analytics_tests.dagster_dev import dagster_dev
from mcq_analytics_tests.facts_of import execute, run_facts, scalar, wrong_rows
from mcq_analytics_tests.servers import CHECKOUT, wait_until

FIRST = parse_hour("2024-01-01T00:00")
NAMES = tuple(fact.name for fact in FACTS)
HOURS = 30
BACKFILL = """
mutation($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
  }
}
"""
CANCEL = """
mutation($id: String!) { cancelPartitionBackfill(backfillId: $id) { __typename } }
"""


def planned(
    instance: DagsterInstance, database: Database, end: int, chunk: int = 168, **only: bool
) -> list[list[tuple[int, int]]]:
    """Return, per backfill, its runs: first hour and number of hours."""
    window = Window(FIRST, FIRST + end * HOUR)
    pieces = plan(instance, database, load_settings(), window, chunk=chunk, **only)
    return [[((run.start - FIRST) // HOUR, run.hours) for run in piece.runs] for piece in pieces]


def test_a_range_of_720_hours_is_five_runs(database: Database, instance: DagsterInstance) -> None:
    sizes = [[hours for _, hours in piece] for piece in planned(instance, database, 720)]
    assert sizes == [[168], [168], [168], [168], [48]]
    assert planned(instance, database, 5, chunk=2) == [[(0, 2)], [(2, 2)], [(4, 1)]]


def test_only_hours_that_are_missing_or_failed_for_some_fact_are_planned(
    database: Database, instance: DagsterInstance, spark: SparkSession
) -> None:
    run_facts(database, spark, Window(FIRST, FIRST + 6 * HOUR))
    failed = (
        "INSERT INTO analytics.etl_metadata (pipeline_name, window_start, window_end, status, "
        "started_at, finished_at) SELECT name, timestamptz '{start}', timestamptz '{end}', "
        "'failed', now(), now() FROM unnest(ARRAY{names}) name"
    )
    execute(
        database,
        failed.format(start=FIRST + HOUR, end=FIRST + 3 * HOUR, names=["test_funnel_fact"]),
        failed.format(start=FIRST + 4 * HOUR, end=FIRST + 5 * HOUR, names=list(NAMES)),
    )
    assert planned(instance, database, 8, only_failed=True) == [[(1, 2), (4, 1)]]
    assert planned(instance, database, 8, only_missing=True) == [[(6, 2)]]
    both = planned(instance, database, 8, only_missing=True, only_failed=True)
    assert both == [[(1, 2), (4, 1), (6, 2)]]
    assert planned(instance, database, 1, only_failed=True) == []


def test_without_a_daemon_nothing_is_submitted_and_the_error_names_the_remedy(
    database: Database, instance: DagsterInstance, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["backfill", "--start", "2024-01-01T00", "--end", "2024-01-02T00"]
    with pytest.raises(SystemExit) as ended:
        main([*call, "--dry-run", "--chunk", "10"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.splitlines()[:3] == [
        "3 runs",
        "hours\twindow",
        "10\t[2024-01-01T00:00Z, 2024-01-01T10:00Z)",
    ]
    with pytest.raises(SystemExit) as ended:
        main(call)
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("error: no Dagster daemon is running on this instance: start one")
    assert instance.get_backfills() == []


@pytest.fixture(scope="module")
def platform(
    server: URL,
    dagster_template: str,
    templates: Callable[[IdType], str],
    of_suite_server: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Platform]:
    """A platform for all tests of this module, because its processes are slow to start."""
    url = create_database(server, "backfilled", templates(IdType.BIGINT))
    database = Database(url, "public", "analytics")
    last = last_closed_hour_end()
    window = Window(last - HOURS * HOUR, last)
    execute(
        database,
        "INSERT INTO answers SELECT n, n % 5, n % 3, n % 2, 1, 'A', "
        f"timestamptz '{window.start}' + n * interval '20 min' FROM generate_series(0, 89) n",
        "INSERT INTO questions SELECT q, 'A' FROM generate_series(0, 2) q",
        "INSERT INTO submissions SELECT n % 5, n % 2, "
        f"timestamptz '{window.start}' + n * interval '1 h', 'completed' "
        "FROM generate_series(0, 29) n",
    )
    records = create_database(server, "platform_records", dagster_template)
    directory = tmp_path_factory.mktemp("platform")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DB_DEV_URL", url.render_as_string(hide_password=False))
        patch.setenv("MCQ_PARTITION_START", window.start.isoformat())
        patch.setenv("MCQ_HOME", str(directory / ".mcq"))
        for name, value in of_suite_server.items():
            patch.setenv(name, value)
        with (
            opened_instance(
                records.render_as_string(hide_password=False), directory, patch
            ) as instance,
            dagster_dev(directory) as ui,
        ):
            environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
            yield Platform(database, instance, ui, window, environment)
    drop_database(url)
    drop_database(records)


@dataclass
class Outcome:
    """The results of backfills that ran at the same time."""

    followed: tuple[int, str, str]
    interrupted: tuple[int, str]
    pages: list[str]
    left_running: list[str]
    cancelled: list[object]
    of_the_ui: str
    of_dagster: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def outcome(platform: Platform) -> Outcome:
    """Compute the whole window in each of the three ways at the same time, and kill a run."""
    with platform.database.engine().connect() as holder:
        # Until it is killed, the run of the UI cannot store its facts, and so does not end.
        holder.execute(text(f"LOCK TABLE analytics.{NAMES[0]} IN SHARE MODE"))
        answer = platform.ui.ask(
            BACKFILL,
            params={
                "partitionNames": [partition_key(hour.start) for hour in platform.window.chunks(1)],
                "assetSelection": [{"path": [name]} for name in NAMES],
            },
        )["launchPartitionBackfill"]
        assert answer["__typename"] == "LaunchBackfillSuccess", answer
        of_the_ui = answer["backfillId"]

        interrupted = platform.backfill("--chunk", "20")
        assert interrupted.stdout is not None
        submitted = [interrupted.stdout.readline() for _ in range(2)]
        assert all(submitted), interrupted.communicate(timeout=60)
        interrupted.send_signal(signal.SIGINT)
        _, said_when_interrupted = interrupted.communicate(timeout=60)
        pages = [line.split()[-1] for line in submitted]
        left_running = [platform.status_of(page) for page in pages]
        cancelled = [platform.ui.ask(CANCEL, id=page.rsplit("/", 1)[1]) for page in pages]

        # The daemon looks for new backfills every thirty seconds.
        followed = platform.backfill()
        wait_until(lambda: platform.processes_of(of_the_ui) != [], seconds=300)
        process = psutil.Process(platform.processes_of(of_the_ui)[0])
        for victim in [*process.children(recursive=True), process]:
            # Some of its processes live for a moment only.
            with suppress(psutil.NoSuchProcess):
                victim.kill()

    first, last = platform.window.start, platform.window.end - HOUR
    of_dagster = subprocess.run(
        [
            *(sys.executable, "-m", "dagster", "asset", "materialize"),
            *("-m", "mcq_analytics.definitions", "--select", ",".join(NAMES)),
            *("--partition-range", f"{partition_key(first)}...{partition_key(last)}"),
        ],
        env=platform.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    out, err = followed.communicate(timeout=400)
    return Outcome(
        (followed.returncode, out, err),
        (interrupted.returncode, said_when_interrupted.splitlines()[-1]),
        pages,
        left_running,
        cancelled,
        of_the_ui,
        of_dagster,
    )


pytestmark = pytest.mark.timeout(900)


def test_the_command_submits_a_backfill_and_follows_it(
    platform: Platform, outcome: Outcome
) -> None:
    code, out, err = outcome.followed
    assert code == 0, err
    [submitted] = re.findall(r"submitted http://127\.0\.0\.1:3000/runs/b/(\w+)", out)
    assert platform.runs_of(submitted) == [DagsterRunStatus.SUCCESS]
    assert f"done: {HOURS} hours" in out


def test_ctrl_c_leaves_the_backfills_running_and_names_their_pages(
    platform: Platform, outcome: Outcome
) -> None:
    code, said = outcome.interrupted
    assert code == 130
    assert said == f"it continues: follow or cancel it at {', '.join(outcome.pages)}"
    assert outcome.left_running == ["REQUESTED", "REQUESTED"]
    for page, answer in zip(outcome.pages, outcome.cancelled, strict=True):
        assert answer == {"cancelPartitionBackfill": {"__typename": "CancelBackfillSuccess"}}
        platform.wait_for_status(page, "CANCELED")


def test_a_backfill_from_the_ui_is_one_run_and_is_retried_after_its_process_is_killed(
    platform: Platform, outcome: Outcome
) -> None:
    platform.wait_for_backfill(outcome.of_the_ui)
    assert sorted(platform.runs_of(outcome.of_the_ui), key=str) == [
        DagsterRunStatus.FAILURE,
        DagsterRunStatus.SUCCESS,
    ]


def test_the_tags_of_a_run_show_its_hours_and_not_its_process(
    platform: Platform, outcome: Outcome
) -> None:
    answer = platform.ui.ask(
        "query($filter: RunsFilter) { runsOrError(filter: $filter) "
        "{ ... on Runs { results { tags { key } } } } }",
        filter={"tags": [{"key": "dagster/backfill", "value": outcome.of_the_ui}]},
    )
    for run in answer["runsOrError"]["results"]:
        keys = {tag["key"] for tag in run["tags"]}
        assert "dagster/asset_partition_range_start" in keys
        assert not [key for key in keys if "process" in key or key.startswith("mcq/")]


def test_dagsters_own_command_takes_a_range_of_partitions(outcome: Outcome) -> None:
    assert outcome.of_dagster.returncode == 0, outcome.of_dagster.stderr


def test_all_three_ways_give_the_same_exact_tables(platform: Platform, outcome: Outcome) -> None:
    assert wrong_rows(platform.database) == []
    computed = (
        "SELECT count(DISTINCT run_id) FROM analytics.etl_metadata "
        f"WHERE status = 'success' AND pipeline_name = '{NAMES[0]}' "
        "AND window_end - window_start > interval '5 h'"
    )
    assert int(str(scalar(platform.database, computed))) >= 3
    hours = {partition_key(hour.start) for hour in platform.window.chunks(1)}
    for name in NAMES:
        assert hours <= platform.instance.get_materialized_partitions(AssetKey(name))


def test_dagster_dev_shows_no_warning_of_ours(platform: Platform, outcome: Outcome) -> None:
    assert [
        line
        for line in platform.ui.log.read_text().splitlines()
        if "warning" in line.lower() and "incubator" not in line and "mcq" in line.lower()
    ] == []
