"""The UI as `demo` opens it, with embedded records: its output, crashes, and what it leaves behind.

It runs with production's settings, so schedule and sensors are off.
"""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy.engine import URL

from mcq_analytics.definitions.automation import OFF
from mcq_analytics.definitions.partitions import range_tags
from mcq_analytics.errors import McqError
from mcq_analytics.launching import ui
from mcq_analytics.model.facts import IdType
from mcq_analytics.model.windows import HOUR, Window, last_closed_hour_end
from mcq_analytics.postgres.database import Database
from mcq_analytics.settings import load_settings
from mcq_analytics.spark.endpoints import Endpoint, local_endpoint
from mcq_analytics_tests.conftest import create_database, drop_database
from mcq_analytics_tests.dagster_dev import Ui, dagster_dev
from mcq_analytics_tests.facts_of import execute
from mcq_analytics_tests.servers import (
    free_port,
    is_running,
    kill_server,
    processes,
    server_of,
    wait_until,
)

pytestmark = pytest.mark.timeout(600)

ERROR_OF_RUN = " - dagster - ERROR - hourly_facts - "
RESTARTED = "the code server died: it is restarted"
AUTOMATIONS = """
{ repositoriesOrError { ... on RepositoryConnection { nodes {
    schedules { name description scheduleState { status } }
    sensors { name description sensorState { status } }
} } } }
"""
MADE = """
query($id: ID!) { logsForRun(runId: $id) { ... on EventConnection { events {
    ... on MaterializationEvent { metadataEntries { label ... on TextMetadataEntry { text } } }
} } } }
"""


@dataclass
class Seen:
    """Observations of one UI, from its start to its end."""

    home: Path
    automations: list[dict[str, Any]] = field(default_factory=list)
    refusal: str = ""
    statuses: list[str] = field(default_factory=list)
    printed: dict[str, list[str]] = field(default_factory=dict)
    copiers: list[str] = field(default_factory=list)
    server: int = 0
    spark_server: Endpoint | None = None
    computed_on: str = ""
    left: list[int] = field(default_factory=list)


class Log:
    """The output of a UI; `since` returns the lines since its last call."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = 0

    def since(self) -> list[str]:
        lines = self._path.read_text().splitlines()
        found, self._seen = lines[self._seen :], len(lines)
        return found


def answers(found: Ui) -> bool:
    """Return whether the UI shows records of runs."""
    try:
        shown = found.ask("{ runsOrError { ... on Runs { results { runId } } } }")
    except (pytest.fail.Exception, AssertionError, OSError):
        return False
    return "results" in shown["runsOrError"]


def code_servers(directory: Path) -> list[int]:
    """Return the code servers of the UI in this directory."""
    return [pid for pid, _, line in processes() if "api grpc" in line and str(directory) in line]


def launched(found: Ui, tags: dict[str, str]) -> str:
    """Launch a run once the UI reaches its code server; return its id."""
    answer: dict[str, Any] = {}

    def is_launched() -> bool:
        with suppress(pytest.fail.Exception, AssertionError, OSError):
            answer.update(found.launch_answer(tags))
        return answer.get("__typename") == "LaunchRunSuccess"

    wait_until(is_launched, seconds=60)
    return str(answer["run"]["runId"])


@pytest.fixture(scope="module")
def seen(
    server: URL,
    templates: Callable[[IdType], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Seen]:
    """Refuse a second UI, compute an hour, kill both servers, fail a run, and end it all."""
    url = create_database(server, "looked_at", templates(IdType.BIGINT))
    database = Database(url, "public", "analytics")
    hour = Window(last_closed_hour_end() - HOUR, last_closed_hour_end())
    execute(database, f"INSERT INTO answers VALUES (1, 7, 3, 5, 1, 'A', '{hour.start}')")
    directory = tmp_path_factory.mktemp("looking")
    found = Seen(directory / "home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MCQ_ENV", "prod")
        patch.setenv("DB_PROD_URL", url.render_as_string(hide_password=False))
        patch.setenv("MCQ_PARTITION_START", (hour.end - 9 * HOUR).isoformat())
        patch.setenv("MCQ_DAGSTER_WEBSERVER_URL", "http://127.0.0.1:3000")
        patch.setenv("MCQ_HOME", str(found.home))
        with dagster_dev(directory) as looking:
            log = Log(looking.log)
            found.printed["start"] = log.since()
            [repository] = looking.ask(AUTOMATIONS)["repositoriesOrError"]["nodes"]
            found.spark_server = spark_server_of(found.home)
            found.automations = [*repository["schedules"], *repository["sensors"]]
            patch.setenv("DAGSTER_HOME", str(found.home))
            with pytest.raises(McqError) as refused:
                ui.serve(load_settings(), "127.0.0.1", free_port())
            found.refusal = str(refused.value)
            log.since()

            run_id = looking.launch(range_tags(hour))
            wait_until(lambda: "step" in status_and_steps(looking, run_id))
            commands = [line for _, _, line in processes()]
            found.copiers = [line for line in commands if "tail" in line and str(directory) in line]
            found.statuses.append(looking.wait_for_run(run_id))
            found.printed["a good run"] = log.since()
            found.computed_on = computed_on(looking, run_id)

            kill_server(found.home)
            wait_until(lambda: answers(looking), seconds=30)
            found.printed["a killed server"] = log.since()

            [code_server] = code_servers(directory)
            os.kill(code_server, signal.SIGKILL)
            wait_until(lambda: RESTARTED in looking.log.read_text(), seconds=30)
            wait_until(lambda: code_servers(directory) not in ([], [code_server]), seconds=60)
            # Until it has loaded the code, the UI may complain that it does not answer.
            wait_until(lambda: looking.log.read_text().count(OFF) == 2, seconds=60)
            found.printed["a killed code server"] = log.since()

            execute(database, "ALTER TABLE answers RENAME COLUMN test_id TO exam_id")
            run_id = launched(looking, {**range_tags(hour), "dagster/max_retries": "0"})
            found.statuses.append(looking.wait_for_run(run_id))
            # The run prints its end after it has recorded it.
            wait_until(lambda: ERROR_OF_RUN in looking.log.read_text(), seconds=60)
            found.printed["a failed run"] = log.since()
            found.server = server_of(found.home)
        found.left = [found.server] if is_running(found.server) else []
        wait_until(lambda: local_endpoint(found.home) is None, seconds=10)
    yield found
    drop_database(url)


def status_and_steps(looking: Ui, run_id: str) -> str:
    """Return `step` if a step of the run has started, else the status of the run."""
    run = looking.ask(
        "query($id: ID!) { runOrError(runId: $id) { ... on Run { status stepStats { status } } } }",
        id=run_id,
    )["runOrError"]
    return "step" if run["stepStats"] else str(run["status"])


def spark_server_of(home: Path) -> Endpoint | None:
    """Return the Spark server of a UI, once it is up."""
    wait_until(lambda: local_endpoint(home) is not None)
    return local_endpoint(home)


def computed_on(looking: Ui, run_id: str) -> str:
    """Return where Spark computed a run, as its materializations say."""
    events = looking.ask(MADE, id=run_id)["logsForRun"]["events"]
    [place, *others] = [
        entry["text"]
        for event in events
        for entry in event.get("metadataEntries", ())
        if entry["label"] == "spark"
    ]
    assert set(others) <= {place}
    return str(place)


def test_in_dagster_dev_with_production_settings_schedule_and_sensors_are_off_with_a_warning(
    seen: Seen,
) -> None:
    names = {one["name"] for one in seen.automations}
    assert names == {
        "hourly_facts_schedule",
        "recovery_sensor",
        "late_data_sensor",
        "alert_sensor",
    }
    for one in seen.automations:
        state = one.get("scheduleState") or one["sensorState"]
        assert state["status"] == "STOPPED"
        assert one["description"].startswith(OFF)
    said = [line for lines in seen.printed.values() for line in lines if OFF in line]
    assert len(said) == 2  # the code server was started twice
    dated = (
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \S+ - mcq_analytics\.definitions\.automation - WARNING - "
    )
    assert all(re.match(dated, line) for line in said)


def test_a_second_ui_for_the_same_home_is_refused(seen: Seen) -> None:
    assert f"a UI for {seen.home} is already running (http://127.0.0.1:" in seen.refusal
    assert "MCQ_HOME" in seen.refusal


def test_a_good_run_prints_nothing_and_a_failed_run_little(seen: Seen) -> None:
    assert seen.statuses == ["SUCCESS", "FAILURE"]
    assert seen.printed["a good run"] == []
    failed = seen.printed["a failed run"]
    assert len(failed) < 100
    [error] = [line for line in failed if " - dagster - " in line]
    assert ERROR_OF_RUN in error


def test_runs_of_the_ui_compute_on_its_spark_server(seen: Seen) -> None:
    assert seen.spark_server is not None
    assert seen.computed_on == str(seen.spark_server)


def test_output_of_steps_goes_under_mcq_home_and_no_process_copies_it(seen: Seen) -> None:
    logs = list((seen.home / "dagster" / "compute_logs").rglob("*.err"))
    assert logs
    assert all(log.with_suffix(".complete").exists() for log in logs)
    assert not (seen.home.parent / ".mcq").exists()
    assert seen.copiers == []


def test_a_killed_embedded_server_is_restarted(seen: Seen) -> None:
    assert seen.statuses[1] == "FAILURE"  # recorded after the restart
    # A thread of Dagster's code server that asks just then prints a trace of forty lines.
    assert len(seen.printed["a killed server"]) < 100


def test_a_killed_code_server_is_restarted_with_one_line(
    seen: Seen,
) -> None:
    assert seen.printed["a killed code server"].count(RESTARTED) == 1
    assert seen.statuses[1] == "FAILURE"  # a run was launched


def test_the_ui_ends_its_processes_even_if_a_thread_reuses_the_id_of_an_ended_one() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    ended = psutil.Process(thread.native_id)
    # As if an earlier process had had this id.
    setattr(ended, "_ident", (ended.pid, 1.0))  # noqa: B010
    process = psutil.Popen(["sleep", "60"])
    try:
        ui._end({ended, process})
        assert process.poll() is not None
    finally:
        stop.set()
        thread.join()
        if process.poll() is None:
            process.kill()


def test_a_run_that_ends_with_the_ui_ends_its_own_java(tmp_path: Path) -> None:
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\ntrap 'touch asked' TERM\nwhile :; do sleep 0.1; done\n")
    java.chmod(0o755)
    trap = "trap 'sleep 1; kill -9 $!; exit' TERM; ./java & wait"
    run = psutil.Popen(["sh", "-c", trap], cwd=tmp_path)
    wait_until(lambda: "java" in [child.name() for child in run.children()])
    ui._end({run, *run.children(recursive=True)})
    assert run.poll() is not None
    assert not (tmp_path / "asked").exists()


def test_the_embedded_server_stops_with_the_ui(seen: Seen) -> None:
    assert seen.left == []
