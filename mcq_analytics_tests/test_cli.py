"""The command line: what each command does, prints and exits with."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import datetime

import pytest
from dagster import DagsterInstance
from pyspark.sql import SparkSession
from sqlalchemy import text

from mcq_analytics.compute.lock import lock_key
from mcq_analytics.model.facts import FACTS
from mcq_analytics.model.windows import HOUR, format_hour
from mcq_analytics.postgres.database import Database
from mcq_analytics_tests.alert_servers import SlackServer
from mcq_analytics_tests.commands import call, fails
from mcq_analytics_tests.facts_of import contents, execute, scalar, wrong_rows
from mcq_analytics_tests.servers import CHECKOUT, free_port


@pytest.fixture
def answered(database: Database) -> Database:
    execute(
        database,
        "INSERT INTO answers VALUES (1, 7, 3, 5, 1, 'A', '2024-01-01 09:10Z')",
        "INSERT INTO submissions VALUES (7, 5, '2024-01-01 09:20Z', 'completed')",
    )
    return database


def test_init_db_creates_base_tables_only_with_the_option(empty_database: Database) -> None:
    fails(call("init-db"), 1, "public.answers is missing", "init-db --base-tables")
    first = call("init-db", "--base-tables")
    assert first.exit_code == 0
    assert "created the base tables answers, questions, sessions, submissions" in first.output
    second = call("init-db")
    assert second.output == "the fact schema analytics is up to date\n"


def test_init_db_prints_missing_indexes_without_creating_them(answered: Database) -> None:
    execute(answered, "DROP INDEX answers_timestamp_idx")
    result = call("init-db")
    assert result.exit_code == 0
    assert "CREATE INDEX CONCURRENTLY answers_timestamp_idx ON public.answers" in result.output
    assert (
        scalar(
            answered, "SELECT count(*) FROM pg_indexes WHERE indexname = 'answers_timestamp_idx'"
        )
        == 0
    )


def test_run_computes_a_window_and_prints_its_row_counts(
    answered: Database, spark: SparkSession, instance: DagsterInstance
) -> None:
    result = call("run", "--start", "2024-01-01T09:00", "--end", "2024-01-01T12:00+01:00")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "2 hours, 2024-01-01T09:00Z to 2024-01-01T11:00Z"
    assert lines[1].split("\t") == [
        "fact",
        "rows read",
        "inserted",
        "updated",
        "deleted",
        "seconds",
    ]
    # The facts are computed from the same rows: an answer and a submission.
    for line, fact in zip(lines[2:], FACTS, strict=True):
        assert line.startswith(f"{fact.name}\t2\t1\t0\t0\t")
    assert wrong_rows(answered) == []
    status = call("status")
    assert status.exit_code == 0
    assert status.stdout.splitlines()[1].startswith(
        "question_interaction_fact\t2024-01-01T10:00Z\t"
    )


def test_run_without_times_continues_after_the_last_success_until_nothing_is_left(
    answered: Database,
    spark: SparkSession,
    instance: DagsterInstance,
    closed: datetime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begin = closed - 3 * HOUR
    monkeypatch.setenv("MCQ_PARTITION_START", format_hour(begin))
    assert call("run").stdout.startswith(f"3 hours, {format_hour(begin)}")
    again = call("run")
    assert (again.exit_code, again.stdout) == (
        0,
        "nothing to do: all closed hours have succeeded (rescore finds rows that changed since)\n",
    )


def test_lock_timeout_limits_how_long_run_waits_for_another_run(
    answered: Database, spark: SparkSession, instance: DagsterInstance
) -> None:
    key = lock_key("analytics")
    with answered.engine().connect() as other:
        other.execute(text("SELECT pg_advisory_lock(:key)"), {"key": key})
        day = ("--start", "2024-01-01T09", "--end", "2024-01-01T10")
        fails(call("run", *day, "--lock-timeout", "0"), 1, "waited 0 s", "raise --lock-timeout")


def test_rescore_reports_the_results_that_change_and_corrects_them(
    answered: Database, spark: SparkSession, instance: DagsterInstance
) -> None:
    execute(
        answered,
        "INSERT INTO answers VALUES (2, 7, 4, 5, 1, 'B', '2024-01-01 11:10Z')",
        "INSERT INTO questions VALUES (3, 'A')",
    )
    day = ("--start", "2024-01-01T09", "--end", "2024-01-01T12")
    assert call("run", *day).exit_code == 0
    nothing = "nothing to do: the facts match the base tables\n"
    assert call("rescore").stdout == nothing
    before = contents(answered)
    execute(answered, "UPDATE questions SET correct_option = 'B' WHERE question_id = 3")
    dry = call("rescore", "--dry-run")
    assert dry.stdout == (
        "1 hours differ from the base tables\n"
        "would change 1 question results of 1 students\n"
        "their mean accuracy: 50.00 % before, 0.00 % after, -50.00 percentage points\n"
    )
    assert contents(answered) == before
    assert call("rescore", "--question", "4").stdout == nothing
    done = call("rescore", "--question", "3")
    assert done.stdout == dry.stdout.replace("would change", "changed")
    assert wrong_rows(answered) == []
    assert call("rescore").stdout == nothing
    fails(call("rescore", "--question", "77"), 2, "no question '77'", "no answers")


def test_status_exits_with_1_if_an_hour_has_failed(answered: Database) -> None:
    execute(
        answered,
        "INSERT INTO analytics.etl_metadata (pipeline_name, window_start, window_end, status, "
        "started_at, finished_at, error) VALUES ('test_funnel_fact', '2024-01-01 09:00Z', "
        "'2024-01-01 11:00Z', 'failed', now(), '2024-01-01 11:05Z', 'the disk is full')",
    )
    result = call("status")
    assert result.exit_code == 1
    assert result.stderr == (
        "test_funnel_fact failed over [2024-01-01T09:00Z, 2024-01-01T11:00Z), "
        "last at 2024-01-01T11:05Z: the disk is full\n"
    )
    assert "test_funnel_fact\tnone\t" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--start", "2024-01-01T09:30"), ("not on an hour", "2024-01-01T10:00Z")),
        (("--start", "2024-01-02", "--end", "2024-01-01"), ("later than the start",)),
        (("--start", "2024-01-02", "--end", "2024-01-02"), ("later than the start",)),
        (("--end", "2999-01-01"), ("2999-01-01T00:00Z is in the future", "the last hour")),
        (("--start", "2999-01-01"), ("2999-01-01T00:00Z", "later than the start")),
        (("--start", "yesterday"), ("'yesterday' is not an ISO 8601 time",)),
        (("--start", "2001-01-01", "--end", "2001-01-02"), ("before the first partition",)),
    ],
)
def test_an_invalid_window_is_refused(
    answered: Database, arguments: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    fails(call("run", *arguments), 2, *parts)
    assert contents(answered)["test_funnel_fact"] == []


def test_usage_errors_exit_with_2(database: Database) -> None:
    assert call("run", "--nonsense").exit_code == 2
    assert call("unknown").exit_code == 2
    fails(call("generate", "--students", "0"), 2, "students is 0; it must be at least 1")


def test_if_the_fact_schema_is_missing_the_error_names_init_db(
    answered: Database,
) -> None:
    execute(answered, "DROP SCHEMA analytics CASCADE")
    fails(call("status"), 1, "run mcq-analytics init-db")
    fails(call("run", "--start", "2024-01-01", "--end", "2024-01-02"), 1, "mcq-analytics init-db")


def test_the_command_and_the_module_do_the_same(database: Database) -> None:
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(
        [sys.executable, "-m", "mcq_analytics", "status"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == call("status").stdout


def test_alert_test_sends_a_message_and_fails_if_it_is_not_accepted(
    slack: SlackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALERT_METHOD", "slack")
    monkeypatch.setenv("SLACK_WEBHOOK_URL", slack.webhook().slack_webhook_url or "")
    sent = call("alert-test")
    assert (sent.exit_code, sent.stdout) == (0, "sent by slack\n")
    assert len(slack.requests) == 1
    slack.status = 500
    fails(call("alert-test"), 1, "Slack refused the alert with HTTP 500")


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize(
    "command", [("status",), ("run",), ("backfill", "--start", "2024-01-01", "--end", "2024-01-02")]
)
def test_records_of_dagster_that_cannot_be_reached_are_one_line_that_names_the_setting(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MCQ_DAGSTER_URL", f"postgresql://u:s3cret@127.0.0.1:{free_port()}/d")
    result = call(*command)
    fails(result, 1, "opening Dagster's records (MCQ_DAGSTER_URL): ", "check host and port")
    assert "s3cret" not in result.output
