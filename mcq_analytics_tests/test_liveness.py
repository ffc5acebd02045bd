"""Whether the process of a run is alive: real processes, in this container and in another."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus
from sqlalchemy import create_engine, text

from mcq_analytics.definitions.build import FACTS_JOB, build_definitions
from mcq_analytics.definitions.run_state import liveness
from mcq_analytics.definitions.run_state.liveness import PROCESS_TAG, end_dead_runs, run_key
from mcq_analytics.definitions.run_state.run_errors import error_of_run
from mcq_analytics.settings import load_settings
from mcq_analytics_tests.servers import CHECKOUT, children, wait_until

BeginRun = Callable[..., tuple[DagsterRun, int]]


@pytest.fixture
def begin_run(instance: DagsterInstance) -> Iterator[BeginRun]:
    """A function that begins a run in a process of its own, and returns the run and the PID."""
    job = build_definitions(load_settings()).resolve_job_def(FACTS_JOB)
    started: list[subprocess.Popen[str]] = []

    def begin(*within: str) -> tuple[DagsterRun, int]:
        run = instance.create_run_for_job(job, status=DagsterRunStatus.STARTED)
        process = subprocess.Popen(
            [*within, sys.executable, "-m", "mcq_analytics_tests.living_run", run.run_id],
            env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "alive\n"
        wait_until(lambda: is_held(run))
        return run, (children(process.pid) if within else [process.pid])[0]

    yield begin
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def on_the_records(statement: str, **values: object) -> object:
    engine = create_engine(os.environ["MCQ_DAGSTER_URL"], isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        found = connection.execute(text(statement), values).scalar()
    engine.dispose()
    return found


def is_held(run: DagsterRun) -> bool:
    taken = "SELECT pg_try_advisory_xact_lock(:key)"
    return on_the_records(taken, key=run_key(run.run_id)) is False


def status(instance: DagsterInstance, run: DagsterRun) -> str:
    found = instance.get_run_by_id(run.run_id)
    assert found is not None
    return found.status.value


def test_a_killed_run_is_reported_with_a_remedy_whoever_finds_it_dead(
    instance: DagsterInstance, begin_run: BeginRun
) -> None:
    by_code_server, _ = begin_run()
    instance.report_run_failed(by_code_server)  # as the code server does
    by_us, process = begin_run()
    os.kill(process, 9)
    wait_until(lambda: not is_held(by_us))
    end_dead_runs(instance, load_settings())
    for run in (by_code_server, by_us):
        said = error_of_run(instance, run.run_id)
        assert said.startswith("the process of the run was killed before the run ended")
        assert "lower MCQ_SPARK_DRIVER_MEMORY" in said


def test_a_run_whose_process_was_killed_on_this_machine_is_ended_at_once(
    instance: DagsterInstance, begin_run: BeginRun
) -> None:
    run, process = begin_run()
    end_dead_runs(instance, load_settings())
    assert status(instance, run) == "STARTED"
    os.kill(process, 9)  # it stays as one that nobody has waited for
    wait_until(lambda: not is_held(run))
    end_dead_runs(instance, load_settings())
    assert status(instance, run) == "FAILURE"


def test_a_run_in_another_container_with_the_same_name_is_ended_only_after_its_lock_stays_free(
    instance: DagsterInstance, begin_run: BeginRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    unshare = shutil.which("unshare")
    contained = (unshare or "", "--fork", "--pid", "--mount-proc", "--kill-child")
    if not unshare or subprocess.run([*contained, "true"], check=False).returncode:
        pytest.skip("no namespace of processes can be made here")
    run, process = begin_run(*contained)
    monkeypatch.setattr(liveness, "GONE_AFTER_SECONDS", 0.0)
    end_dead_runs(instance, load_settings())
    assert status(instance, run) == "STARTED"
    monkeypatch.setattr(liveness, "GONE_AFTER_SECONDS", 3_600.0)
    os.kill(process, 9)
    wait_until(lambda: not is_held(run))
    end_dead_runs(instance, load_settings())
    assert status(instance, run) == "STARTED"
    monkeypatch.setattr(liveness, "GONE_AFTER_SECONDS", 0.0)
    end_dead_runs(instance, load_settings())
    assert status(instance, run) == "FAILURE"


def test_a_live_process_that_lost_the_database_takes_its_lock_again_and_is_not_ended(
    instance: DagsterInstance, begin_run: BeginRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liveness, "_SECONDS_BETWEEN_BEATS", 0.2)
    run = begin_run()[0]
    alive = liveness.Alive("another", load_settings())
    alive.start()
    key = run_key("another")
    taken = "SELECT pg_try_advisory_xact_lock(:key)"
    wait_until(lambda: on_the_records(taken, key=key) is False)
    on_the_records(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
        "WHERE application_name = 'mcq_analytics alive' AND datname = current_database()"
    )
    end_dead_runs(instance, load_settings())
    assert status(instance, run) == "STARTED"
    wait_until(lambda: on_the_records(taken, key=key) is False)
    alive.stop()
    assert on_the_records(taken, key=key) is True


def test_another_process_with_the_same_pid_is_not_the_run(
    instance: DagsterInstance, begin_run: BeginRun
) -> None:
    run, process = begin_run()
    words = liveness.process_tags(run.run_id)[PROCESS_TAG].split(maxsplit=2)
    assert liveness.started_at(process) is not None
    other = instance.create_run_for_job(
        build_definitions(load_settings()).resolve_job_def(FACTS_JOB),
        status=DagsterRunStatus.STARTED,
    )
    instance.add_run_tags(other.run_id, {PROCESS_TAG: f"{other.run_id} {process} {words[2]}"})
    end_dead_runs(instance, load_settings())
    assert (status(instance, run), status(instance, other)) == ("STARTED", "FAILURE")


def test_a_reexecuted_run_is_not_judged_by_the_process_of_its_parent(
    instance: DagsterInstance,
) -> None:
    job = build_definitions(load_settings()).resolve_job_def(FACTS_JOB)
    tags = {PROCESS_TAG: f"of-the-parent 1 1 {liveness.place()}"}
    run = instance.create_run_for_job(job, status=DagsterRunStatus.STARTED, tags=tags)
    end_dead_runs(instance, load_settings())
    assert status(instance, run) == "STARTED"
