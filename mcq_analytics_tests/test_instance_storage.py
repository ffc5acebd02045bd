"""Dagster's records on the embedded server: after it is killed, and in the webserver."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from dagster import DagsterInstance, DagsterRunStatus, job, op
from sqlalchemy import create_engine, text

from mcq_analytics.instance.storage import records_url
from mcq_analytics.launching.in_process import dagster_instance
from mcq_analytics.settings import load_settings
from mcq_analytics_tests.servers import kill_server


@op
def nothing() -> None:
    """Do nothing."""


@job
def nothing_job() -> None:
    nothing()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("DAGSTER_HOME", "MCQ_DAGSTER_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MCQ_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def instance(home: Path) -> Iterator[DagsterInstance]:
    """An instance on an embedded server of its own, which writes late what nobody waits for."""
    settings = load_settings()
    with dagster_instance(settings) as found:
        admin = create_engine(records_url(settings), isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.execute(text("ALTER SYSTEM SET wal_writer_delay = '10s'"))
            connection.execute(text("SELECT pg_reload_conf()"))
        admin.dispose()
        yield found


def test_a_run_that_has_ended_has_ended_after_the_server_is_killed(
    home: Path, instance: DagsterInstance
) -> None:
    run_id = nothing_job.execute_in_process(instance=instance).run_id
    kill_server(home)
    run = instance.get_run_by_id(run_id)
    assert run is not None
    assert run.status is DagsterRunStatus.SUCCESS
    events = [record.dagster_event_type for record in instance.all_logs(run_id)]
    assert "PIPELINE_SUCCESS" in {str(event.value) for event in events if event}


def test_the_webserver_uses_the_records_again_after_the_server_is_killed(
    home: Path, instance: DagsterInstance, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = nothing_job.execute_in_process(instance=instance).run_id
    instance.optimize_for_webserver(statement_timeout=5_000, pool_recycle=3_600, max_overflow=20)
    assert instance.get_run_by_id(run_id) is not None
    kill_server(home)
    with caplog.at_level(logging.WARNING):
        assert instance.get_run_by_id(run_id) is not None
        assert instance.all_logs(run_id)
    assert caplog.records == []
    engine = instance.run_storage._engine  # type: ignore[attr-defined]
    with engine.connect() as connection:
        assert connection.execute(text("SHOW statement_timeout")).scalar() == "5s"
