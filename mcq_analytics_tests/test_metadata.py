"""Reading `etl_metadata`: the latest attempts, the next window, alerts after two failures."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta, timezone

import click.testing
import pytest
from dagster import DagsterInstance

import mcq_analytics
from mcq_analytics.cli.app import main
from mcq_analytics.errors import UsageError
from mcq_analytics.launching import in_process
from mcq_analytics.model.windows import HOUR, Window, parse_hour, parse_time, ranges
from mcq_analytics.postgres.database import Database
from mcq_analytics.settings import load_settings
from mcq_analytics_tests.alert_servers import SlackServer
from mcq_analytics_tests.facts_of import execute

FACT = "test_summary_fact"


@pytest.fixture(autouse=True)
def _first_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCQ_PARTITION_START", "2024-03-01T00:00")


def attempt(database: Database, start: str, end: str, status: str, fact: str = FACT) -> None:
    error = "NULL" if status == "success" else "'the disk is full'"
    execute(
        database,
        "INSERT INTO analytics.etl_metadata (pipeline_name, window_start, window_end, status, "
        "rows_read, rows_written, started_at, finished_at, run_id, error) VALUES "
        f"('{fact}', '{start}Z', '{end}Z', '{status}', 5, 3, now(), clock_timestamp(), 'r', "
        f"{error})",
    )


def due(database: Database, **overrides: str) -> tuple[datetime, datetime]:
    engine = mcq_analytics.get_engine("dev")
    assert engine.url.database == database.url.database
    return mcq_analytics.get_time_range(engine, FACT, **overrides)


def test_the_latest_attempts_of_any_status_come_newest_first(database: Database) -> None:
    attempt(database, "2024-01-01 00:00", "2024-01-01 05:00", "success")
    attempt(database, "2024-01-01 05:00", "2024-01-01 06:00", "failed")
    attempt(database, "2024-01-01 05:00", "2024-01-01 07:00", "success", "test_funnel_fact")
    attempt(database, "2024-01-01 05:00", "2024-01-01 06:00", "success")
    engine = mcq_analytics.get_engine("dev")
    latest, before = mcq_analytics.get_last_successful_runs(engine, FACT)
    assert (latest.status, before.status) == ("success", "failed")
    assert before.error == "the disk is full"
    assert latest.window == Window(parse_hour("2024-01-01T05"), parse_hour("2024-01-01T06"))
    assert (latest.rows_read, latest.rows_written, latest.run_id) == (5, 3, "r")
    assert len(mcq_analytics.get_last_successful_runs(engine, FACT, limit=9)) == 3
    assert mcq_analytics.get_last_successful_runs(engine, "unknown") == []
    with pytest.raises(UsageError, match="at least 1"):
        mcq_analytics.get_last_successful_runs(engine, FACT, limit=0)


def test_the_first_window_begins_at_the_first_partition(
    database: Database, closed: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MCQ_PARTITION_START", "2025-02-01T00:00")
    assert due(database) == (parse_hour("2025-02-01T00"), closed)


def test_the_next_window_begins_at_the_end_of_the_successful_hours(
    database: Database, closed: datetime
) -> None:
    attempt(database, "2024-03-01 00:00", "2024-03-01 05:00", "success")
    attempt(database, "2024-03-01 05:00", "2024-03-01 06:00", "success")
    assert due(database) == (parse_hour("2024-03-01T06"), closed)


def test_hours_before_the_earliest_success_are_not_skipped(
    database: Database, closed: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt(database, "2024-03-01 00:00", f"{closed:%Y-%m-%d %H:%M}", "success")
    assert due(database) == (closed, closed)
    monkeypatch.setenv("MCQ_PARTITION_START", "2024-02-29T22:00")
    assert due(database) == (parse_hour("2024-02-29T22"), closed)
    attempt(database, "2024-02-29 22:00", "2024-02-29 23:00", "success")
    assert due(database) == (parse_hour("2024-02-29T23"), closed)
    attempt(database, "2024-02-29 23:00", "2024-03-01 00:00", "failed")
    assert due(database) == (parse_hour("2024-02-29T23"), closed)
    attempt(database, "2024-02-29 23:00", "2024-03-01 00:00", "success")
    assert due(database) == (closed, closed)


def test_hours_before_the_first_partition_are_not_due(
    database: Database, closed: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt(database, "2024-03-01 00:00", "2024-03-01 05:00", "success")
    monkeypatch.setenv("MCQ_PARTITION_START", "2024-03-01T08:00")
    assert due(database) == (parse_hour("2024-03-01T08"), closed)


def test_a_gap_is_not_skipped(database: Database) -> None:
    attempt(database, "2024-03-01 00:00", "2024-03-01 05:00", "success")
    attempt(database, "2024-03-01 07:00", "2024-03-01 09:00", "success")
    attempt(database, "2024-03-01 03:00", "2024-03-01 04:00", "failed")
    assert due(database)[0] == parse_hour("2024-03-01T03")


def test_overrides_win(database: Database) -> None:
    attempt(database, "2024-03-01 00:00", "2024-03-01 05:00", "success")
    assert due(
        database, start_override="2024-01-01T00:00", end_override="2024-01-02T02:00+02:00"
    ) == (parse_hour("2024-01-01T00"), parse_hour("2024-01-02T00"))
    assert due(database, end_override="2024-03-02T00") == (
        parse_hour("2024-03-01T05"),
        parse_hour("2024-03-02T00"),
    )


def test_a_window_that_is_done_is_refused_unless_a_start_is_given(database: Database) -> None:
    attempt(database, "2024-03-01 00:00", "2024-03-01 05:00", "success")
    with pytest.raises(UsageError, match="give a start to compute them again"):
        due(database, end_override="2024-03-01T04")
    with pytest.raises(UsageError, match="is in the future"):
        due(database, end_override="2999-01-01")


def test_nothing_is_due_when_all_is_done(database: Database, closed: datetime) -> None:
    attempt(database, "2024-01-01 00:00", f"{closed:%Y-%m-%d %H:%M}", "success")
    assert due(database) == (closed, closed)


def test_two_failures_in_a_row_send_an_alert(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    attempt(database, "2024-03-01 00:00", "2024-03-01 01:00", "failed")
    due(database)
    assert caplog.text == ""
    attempt(database, "2024-03-01 00:00", "2024-03-01 01:00", "failed")
    due(database)
    assert f"{FACT}: the last two runs failed" in caplog.text
    assert "the disk is full" in caplog.text
    caplog.clear()
    attempt(database, "2024-03-01 00:00", "2024-03-01 01:00", "success")
    due(database)
    assert caplog.text == ""


def test_no_command_sends_alerts_about_failed_hours(
    database: Database,
    instance: DagsterInstance,
    slack: SlackServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ALERT_METHOD", "slack")
    monkeypatch.setenv("SLACK_WEBHOOK_URL", slack.webhook().slack_webhook_url or "")
    for _ in range(2):
        attempt(database, "2024-03-01 00:00", "2024-03-01 01:00", "failed")
    options = ["--start", "2024-03-01", "--end", "2024-03-02", "--only-failed", "--dry-run"]
    result = click.testing.CliRunner().invoke(main, ["backfill", *options])
    assert "[2024-03-01T00:00Z, 2024-03-01T01:00Z)" in result.output
    # The window of `run` without times; `demo` leaves out hours that are done.
    window = in_process.window_to_run(database, load_settings(), None, None)
    assert window is not None
    assert slack.requests == []
    assert due(database) == (window.start, window.end)
    assert len(slack.requests) == 1


def test_a_refused_alert_does_not_stop_the_work(
    database: Database,
    closed: datetime,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ALERT_METHOD", "email")
    monkeypatch.setenv("ALERT_EMAIL_FROM", "a@example.org")
    monkeypatch.setenv("ALERT_EMAIL_TO", "b@example.org")
    monkeypatch.setenv("SMTP_HOST", "127.0.0.1")
    monkeypatch.setenv("SMTP_PORT", "1")
    for _ in range(2):
        attempt(database, "2024-03-01 00:00", "2024-03-01 01:00", "failed")
    assert due(database)[1] == closed
    assert "the alert was not sent" in caplog.text


def test_hours_are_joined_into_the_fewest_windows() -> None:
    end = parse_hour("2024-03-01T00")
    hours = [end - n * HOUR for n in (1, 5, 2, 4, 9)]
    assert [(window.start, window.hours) for window in ranges(hours)] == [
        (end - 9 * HOUR, 1),
        (end - 5 * HOUR, 2),
        (end - 2 * HOUR, 2),
    ]


def test_windows_are_whole_utc_hours_in_order() -> None:
    start = parse_hour("2024-01-01T01:00+01:00")
    window = Window(start, start + timedelta(hours=5))
    assert [chunk.hours for chunk in window.chunks(2)] == [2, 2, 1]
    assert str(window) == "[2024-01-01T00:00Z, 2024-01-01T05:00Z)"
    for wrong in (start, start - HOUR, start + timedelta(minutes=90)):
        with pytest.raises(UsageError):
            Window(start, wrong)
    with pytest.raises(UsageError, match="no time zone"):
        Window(start.replace(tzinfo=None), start)
    assert parse_time("2024-01-01").tzinfo is timezone.utc
    with pytest.raises(UsageError, match="not an ISO 8601 time"):
        parse_time("1 January")
