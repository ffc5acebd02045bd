"""The command line: what each command does, says and exits with; bad input gives one clear line."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import click.testing
import pytest
from dagster import AssetKey, DagsterInstance
from pyspark.sql import SparkSession
from sqlalchemy.engine import URL

import mcq_analytics
from mcq_analytics.cli.app import main
from mcq_analytics.definitions.build import build_definitions
from mcq_analytics.definitions.partitions import partition_key
from mcq_analytics.model.windows import HOUR, format_hour, parse_hour
from mcq_analytics.postgres.database import Database
from mcq_analytics.settings import load_settings
from mcq_analytics.settings.demo_start import note_start
from mcq_analytics_tests.alert_servers import SlackServer
from mcq_analytics_tests.conftest import CHECKOUT
from mcq_analytics_tests.facts_of import contents, execute, scalar, wrong_rows
from mcq_analytics_tests.servers import OwnServer


def call(*arguments: str) -> click.testing.Result:
    """Run a command in this process."""
    return click.testing.CliRunner().invoke(main, list(arguments))


def fails(result: click.testing.Result, code: int, *parts: str) -> None:
    """Check that a command failed with one line on stderr that has all the parts."""
    assert result.exit_code == code, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    for part in parts:
        assert part in lines[0]
    assert "Traceback" not in result.output


@pytest.fixture
def answered(database: Database) -> Database:
    execute(
        database,
        "INSERT INTO answers VALUES (1, 7, 3, 5, 1, 'A', '2024-01-01 09:10Z')",
        "INSERT INTO submissions VALUES (7, 5, '2024-01-01 09:20Z', 'completed')",
    )
    return database


def test_init_db_makes_base_tables_only_when_asked(empty_database: Database) -> None:
    fails(call("init-db"), 1, "public.answers is missing", "init-db --base-tables")
    first = call("init-db", "--base-tables")
    assert first.exit_code == 0
    assert "created the base tables answers, questions, sessions, submissions" in first.output
    second = call("init-db")
    assert second.output == "the fact schema analytics is up to date\n"


def test_init_db_names_missing_indexes_and_makes_none(answered: Database) -> None:
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


def test_run_computes_a_window_and_says_what_it_did(
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
    assert lines[2].startswith("question_interaction_fact\t1\t1\t0\t0\t")
    assert wrong_rows(answered) == []
    status = call("status")
    assert status.exit_code == 0
    assert status.stdout.splitlines()[1].startswith(
        "question_interaction_fact\t2024-01-01T10:00Z\t"
    )


def test_run_goes_on_after_what_has_succeeded_and_then_has_nothing_to_do(
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
        "nothing to do: all hours that are over have succeeded\n",
    )


def test_rescore_says_what_moves_and_moves_it(
    answered: Database, spark: SparkSession, instance: DagsterInstance
) -> None:
    execute(
        answered,
        "INSERT INTO answers VALUES (2, 7, 4, 5, 1, 'B', '2024-01-01 11:10Z')",
        "INSERT INTO questions VALUES (3, 'A')",
    )
    day = ("--start", "2024-01-01T09", "--end", "2024-01-01T12")
    assert call("run", *day).exit_code == 0
    nothing = "nothing to do: the facts are what the base tables give\n"
    assert call("rescore").stdout == nothing
    before = contents(answered)
    execute(answered, "UPDATE questions SET correct_option = 'B' WHERE question_id = 3")
    dry = call("rescore", "--dry-run")
    assert dry.stdout == (
        "1 hours differ from the base tables\n"
        "would move 1 question results of 1 students\n"
        "their mean accuracy: 50.00 % before, 0.00 % after, -50.00 percentage points\n"
    )
    assert contents(answered) == before
    assert call("rescore", "--question", "4").stdout == nothing
    done = call("rescore", "--question", "3")
    assert done.stdout == dry.stdout.replace("would move", "moved")
    assert wrong_rows(answered) == []
    assert call("rescore").stdout == nothing
    fails(call("rescore", "--question", "77"), 2, "no question '77'", "no answers")


def test_status_exits_with_1_when_something_has_failed(answered: Database) -> None:
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
def test_a_window_that_is_none_is_refused(
    answered: Database, arguments: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    fails(call("run", *arguments), 2, *parts)
    assert contents(answered)["test_funnel_fact"] == []


def test_usage_errors_exit_with_2(database: Database) -> None:
    assert call("run", "--nonsense").exit_code == 2
    assert call("unknown").exit_code == 2
    fails(call("generate", "--students", "0"), 2, "students is 0; it must be at least 1")


PRODUCTION = {"MCQ_ENV": "prod", "DB_PROD_URL": "postgresql://mcq@127.0.0.1:1/d"}
EMAIL = {
    "ALERT_METHOD": "email",
    "ALERT_EMAIL_FROM": "a@b.example",
    "ALERT_EMAIL_TO": "c@d.example",
}


def in_production(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let production be the database of the test, with all that production has to be told."""
    monkeypatch.setenv("MCQ_ENV", "prod")
    monkeypatch.setenv("DB_PROD_URL", os.environ["DB_DEV_URL"])
    monkeypatch.setenv("MCQ_PARTITION_START", "2024-01-01T00:00")
    monkeypatch.setenv("MCQ_DAGSTER_WEBSERVER_URL", "https://facts.example")


FILLING = pytest.mark.parametrize(
    "arguments", [("load-csv", "csv"), ("generate", "--students", "3"), ("demo", "--no-ui")]
)


@FILLING
def test_nothing_is_written_into_production_unless_forced(
    database: Database, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    in_production(monkeypatch)
    fails(call(*arguments), 2, f"{arguments[0]} writes rows", "MCQ_ENV is prod", "--force")
    assert scalar(database, "SELECT count(*) FROM answers") == 0
    assert scalar(database, "SELECT count(*) FROM analytics.etl_metadata") == 0
    assert "--force" in call(arguments[0], "--help").output
    assert "MCQ_ENV is prod" in call(arguments[0], "--help").output


def test_whoever_forces_it_writes_into_production(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_production(monkeypatch)
    done = call("generate", "--students", "3", "--force")
    assert done.exit_code == 0, done.output
    assert scalar(database, "SELECT count(*) > 0 FROM answers") is True
    fails(call("load-csv", str(tmp_path / "nowhere"), "--force"), 2, "nowhere is not a folder")


def test_the_demo_runs_in_production_when_forced(
    database: Database,
    spark: SparkSession,
    instance: DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mcq_analytics.cli.app.DEMO_STUDENTS", 5)
    monkeypatch.setattr("mcq_analytics.cli.app.DEMO_HOURS", 2)
    in_production(monkeypatch)
    done = call("demo", "--no-ui", "--force")
    assert done.exit_code == 0, done.output
    assert wrong_rows(database) == []


@pytest.mark.parametrize(
    ("settings", "code", "parts"),
    [
        ({"MCQ_ENV": "staging"}, 2, ("unknown environment 'staging'", "dev, test, prod")),
        ({"MCQ_ENV": "prod"}, 1, ("DB_PROD_URL is not set", ".env.example")),
        (PRODUCTION, 1, ("MCQ_PARTITION_START is not set", "MCQ_ENV is prod", ".env.example")),
        (
            {**PRODUCTION, "MCQ_PARTITION_START": "2024-01-01T00:00"},
            1,
            ("MCQ_DAGSTER_WEBSERVER_URL is not set", "MCQ_ENV is prod", ".env.example"),
        ),
        ({"MCQ_ENV": "test"}, 1, ("DB_TEST_URL is not set",)),
        ({"DB_DEV_URL": "no url"}, 1, ("DB_DEV_URL is not a URL",)),
        ({"DB_DEV_URL": "mysql://u:pw@h/d"}, 1, ("DB_DEV_URL is a mysql URL",)),
        (
            {"DB_DEV_URL": "postgresql://u:hunter2@127.0.0.1:1/d"},
            1,
            ("the server cannot be reached", "check host and port"),
        ),
        ({"MCQ_PARTITION_START": "2024-01-01T00:30"}, 1, ("MCQ_PARTITION_START",)),
        ({"MCQ_AUTOMATION": "perhaps"}, 1, ("MCQ_AUTOMATION", "must be true or false")),
        ({"ALERT_METHOD": "pigeon"}, 1, ("ALERT_METHOD", "log, slack, email")),
        ({"ALERT_METHOD": "slack"}, 1, ("SLACK_WEBHOOK_URL",)),
        ({**EMAIL, "SMTP_USER": "mcq"}, 1, ("SMTP_USER", "set SMTP_STARTTLS=true")),
        (
            {**EMAIL, "SMTP_USER": "mcq", "SMTP_PORT": "465", "SMTP_SSL": "false"},
            1,
            ("SMTP_USER", "set SMTP_STARTTLS=true"),
        ),
        (
            {
                **EMAIL,
                "SMTP_USER": "mcq",
                "ALERT_METHOD": "slack",
                "SLACK_WEBHOOK_URL": "http://127.0.0.1:1/x",
            },
            1,
            ("SMTP_USER", "set SMTP_STARTTLS=true"),
        ),
        ({"SMTP_STARTTLS": "please"}, 1, ("SMTP_STARTTLS is 'please'", "true or false")),
        ({"MCQ_SPARK_CLUSTER": "batch"}, 1, ("SPARK_BATCH_MASTER",)),
        ({"MCQ_SPARK_EXECUTOR_CORES": "many"}, 1, ("MCQ_SPARK_EXECUTOR_CORES",)),
    ],
)
def test_settings_that_cannot_work_are_named_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], code: int, parts: tuple[str, ...]
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    result = call("init-db")
    fails(result, code, *parts)
    assert "hunter2" not in result.output


@pytest.mark.parametrize("settings", [{"MCQ_ENV": "prod"}, PRODUCTION], ids=["none", "a database"])
def test_what_needs_no_settings_works_in_production_without_them(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str]
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    for arguments in (["--help"], ["--version"], *([name, "--help"] for name in main.commands)):
        assert call(*arguments).exit_code == 0
    if "DB_PROD_URL" in settings:
        assert mcq_analytics.get_engine("prod").url.host == "127.0.0.1"


def test_a_database_that_refuses_is_explained_without_the_password(
    server: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.set(database="nowhere", password="hunter2")
    monkeypatch.setenv("DB_DEV_URL", url.render_as_string(hide_password=False))
    result = call("status", "--verbose")
    assert result.exit_code == 1
    assert "the database does not exist" in result.stderr.splitlines()[-1]
    assert "Traceback" in result.stderr
    assert "hunter2" not in result.output


def test_a_wrong_password_is_called_that(
    own_server: OwnServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = own_server.url().set(password="hunter2").render_as_string(hide_password=False)
    monkeypatch.setenv("DB_DEV_URL", wrong)
    result = call("init-db")
    fails(result, 1, "the password or user is wrong", "check the user and password")
    assert "hunter2" not in result.output


def test_a_missing_fact_schema_is_said_with_the_command_that_makes_it(
    answered: Database,
) -> None:
    execute(answered, "DROP SCHEMA analytics CASCADE")
    fails(call("status"), 1, "run mcq-analytics init-db")
    fails(call("run", "--start", "2024-01-01", "--end", "2024-01-02"), 1, "mcq-analytics init-db")


def test_settings_are_read_from_dotenv_and_the_environment_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("MCQ_ENV=prod\nDB_PROD_URL=\n")
    fails(call("init-db"), 1, "DB_PROD_URL is not set")
    monkeypatch.setenv("MCQ_ENV", "test")
    fails(call("init-db"), 1, "DB_TEST_URL is not set")


def test_the_command_and_the_module_are_the_same(database: Database) -> None:
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


def test_the_demo_shows_the_facts_of_a_sample_and_is_quick_the_second_time(
    empty_database: Database,
    spark: SparkSession,
    instance: DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mcq_analytics.cli.app.DEMO_STUDENTS", 20)
    monkeypatch.setattr("mcq_analytics.cli.app.DEMO_HOURS", 6)
    first = call("demo", "--no-ui")
    assert first.exit_code == 0, first.output
    assert "generated " in first.stdout
    assert "the first hour here is " in first.stdout
    for fact in ("question_interaction_fact", "test_summary_fact", "test_funnel_fact"):
        assert f"{fact}: " in first.stdout
    assert wrong_rows(empty_database) == []
    attempts = scalar(empty_database, "SELECT count(*) FROM analytics.etl_metadata")
    second = call("demo", "--no-ui")
    assert second.exit_code == 0
    assert scalar(empty_database, "SELECT count(*) FROM analytics.etl_metadata") == attempts
    assert second.stdout in first.stdout


def test_a_demo_begins_with_its_sample_for_every_process_of_its_home(
    empty_database: Database,
    spark: SparkSession,
    instance: DagsterInstance,
    closed: datetime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mcq_analytics.cli.app.DEMO_STUDENTS", 5)
    monkeypatch.setattr("mcq_analytics.cli.app.DEMO_HOURS", 3)
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
    hours = build_definitions().resolve_asset_graph().get(AssetKey("test_funnel_fact"))
    assert hours.partitions_def is not None
    assert hours.partitions_def.get_first_partition_key() == partition_key(first)
    assert load_settings().partition_start == first


def test_a_demo_decides_for_its_own_database_and_a_setting_goes_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = parse_hour("2025-03-01T05")
    monkeypatch.setenv("DB_DEV_URL", "postgresql://u:hunter2@127.0.0.1/demo")
    home = load_settings().home
    assert note_start(home, load_settings().database_url, start)
    assert not note_start(home, load_settings().database_url, start)
    assert load_settings().partition_start == start
    assert "hunter2" not in "".join(path.read_text() for path in home.iterdir())
    monkeypatch.setenv("MCQ_PARTITION_START", "2025-02-01T00")
    assert load_settings().partition_start == parse_hour("2025-02-01T00")
    monkeypatch.delenv("MCQ_PARTITION_START")
    (tmp_path / ".env").write_text("MCQ_PARTITION_START=2025-04-01T00\n")
    assert load_settings().partition_start == parse_hour("2025-04-01T00")
    (tmp_path / ".env").write_text("MCQ_PARTITION_START=\n")
    monkeypatch.setenv("DB_DEV_URL", "postgresql://u:hunter2@127.0.0.1/another")
    assert load_settings().partition_start == parse_hour("2024-01-01T00")
    (home / "demo.json").write_text("[]")
    fails(call("init-db"), 1, "demo.json cannot be read", "remove it, or set MCQ_PARTITION_START")


def test_alert_test_sends_a_message_and_fails_where_it_is_not_accepted(
    slack: SlackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALERT_METHOD", "slack")
    monkeypatch.setenv("SLACK_WEBHOOK_URL", slack.webhook().slack_webhook_url or "")
    sent = call("alert-test")
    assert (sent.exit_code, sent.stdout) == (0, "sent by slack\n")
    assert len(slack.requests) == 1
    slack.status = 500
    fails(call("alert-test"), 1, "Slack refused the alert with HTTP 500")
