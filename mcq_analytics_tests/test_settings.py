"""Settings: where they come from, and how errors name the variable that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy.engine import URL

import mcq_analytics
from mcq_analytics.cli.app import main
from mcq_analytics.model.windows import parse_hour
from mcq_analytics.settings import load_settings
from mcq_analytics.settings.demo_start import note_start
from mcq_analytics.settings.variables import SECRETS, read_variables
from mcq_analytics_tests.commands import call, fails
from mcq_analytics_tests.servers import OwnServer

PRODUCTION = {"MCQ_ENV": "prod", "DB_PROD_URL": "postgresql://mcq@127.0.0.1:1/d"}
EMAIL = {
    "ALERT_METHOD": "email",
    "ALERT_EMAIL_FROM": "a@b.example",
    "ALERT_EMAIL_TO": "c@d.example",
}


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
def test_a_wrong_setting_is_named_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], code: int, parts: tuple[str, ...]
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    result = call("init-db")
    fails(result, code, *parts)
    assert "hunter2" not in result.output


@pytest.mark.parametrize("settings", [{"MCQ_ENV": "prod"}, PRODUCTION], ids=["none", "a database"])
def test_help_and_get_engine_need_no_production_settings_beyond_the_url(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str]
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    for arguments in (["--help"], ["--version"], *([name, "--help"] for name in main.commands)):
        assert call(*arguments).exit_code == 0
    if "DB_PROD_URL" in settings:
        assert mcq_analytics.get_engine("prod").url.host == "127.0.0.1"


def test_a_refused_connection_is_explained_without_the_password(
    server: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.set(database="nowhere", password="hunter2")
    monkeypatch.setenv("DB_DEV_URL", url.render_as_string(hide_password=False))
    result = call("status", "--verbose")
    assert result.exit_code == 1
    assert "the database does not exist" in result.stderr.splitlines()[-1]
    assert "Traceback" in result.stderr
    assert "hunter2" not in result.output


def test_a_wrong_password_is_reported_as_such(
    own_server: OwnServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = own_server.url().set(password="hunter2").render_as_string(hide_password=False)
    monkeypatch.setenv("DB_DEV_URL", wrong)
    result = call("init-db")
    fails(result, 1, "the password or user is wrong", "check the user and password")
    assert "hunter2" not in result.output


def test_the_environment_wins_over_dotenv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("MCQ_ENV=prod\nDB_PROD_URL=\n")
    fails(call("init-db"), 1, "DB_PROD_URL is not set")
    monkeypatch.setenv("MCQ_ENV", "test")
    fails(call("init-db"), 1, "DB_TEST_URL is not set")


def test_a_demo_sets_the_first_hour_of_its_own_database_unless_a_variable_does(
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


def test_an_empty_variable_counts_as_unset_and_hides_the_one_in_dotenv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("MCQ_FACT_SCHEMA=facts\nMCQ_SOURCE_SCHEMA=\nMCQ_LOCK_TIMEOUT\n")
    found = load_settings()
    assert (found.fact_schema, found.source_schema, found.lock_seconds) == ("facts", "public", 3600)
    monkeypatch.setenv("MCQ_FACT_SCHEMA", "")
    assert load_settings().fact_schema == "analytics"


def test_a_named_cluster_is_read_from_dotenv_too(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(
        "MCQ_SPARK_CLUSTER=night-runs\nSPARK_NIGHT_RUNS_MASTER=yarn\n"
        "SPARK_NIGHT_RUNS_CONF=spark.executor.instances=3\n"
    )
    found = load_settings().spark
    assert (found.master, found.conf) == ("yarn", {"spark.executor.instances": "3"})


def test_no_secret_is_shown_when_another_variable_is_malformed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    secrets = {name: f"hunter2 {name}" for name in SECRETS}
    for name, value in {**secrets, "SMTP_PORT": "hunter2 SMTP_PASSWORD"}.items():
        monkeypatch.setenv(name, value)
    result = call("init-db", "--verbose")
    assert result.exit_code == 1
    assert "error: SMTP_PORT is '***'; it must be a whole number" in result.stderr
    assert "hunter2" not in result.output
    monkeypatch.setenv("SMTP_PORT", "25")
    assert "hunter2" not in repr(load_settings())
    assert "hunter2" not in repr(read_variables())
