"""The alert sensor over real failing runs of a real instance, and a server in Slack's place."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
from dagster import AssetKey, DagsterInstance, DagsterRun, build_sensor_context
from pyspark.sql import SparkSession

from mcq_analytics import alerts
from mcq_analytics.definitions.alert_sensor import send_next
from mcq_analytics.definitions.build import FACTS_JOB, build_definitions
from mcq_analytics.definitions.checks import REMEDY
from mcq_analytics.definitions.hour_outcomes import wrong_hours
from mcq_analytics.definitions.partitions import range_tags
from mcq_analytics.incidents import State, with_message
from mcq_analytics.settings import AlertSettings, load_settings
from mcq_analytics.storage.database import Database
from mcq_analytics.windows import HOUR, Window, parse_hour
from mcq_analytics_tests.alert_servers import SlackServer, SmtpServer
from mcq_analytics_tests.facts_of import execute, wrong_rows

FIRST = parse_hour("2024-01-01T09:00")
FIVE_HOURS = Window(FIRST, FIRST + 5 * HOUR)
NOW = datetime(2024, 1, 2, tzinfo=timezone.utc)
BREAK = "ALTER TABLE analytics.test_funnel_fact ADD CONSTRAINT broken CHECK (total_submissions < 0)"
MEND = "ALTER TABLE analytics.test_funnel_fact DROP CONSTRAINT broken"


class Sensor:
    """The alert sensor of an instance, which ticks when a test says so."""

    def __init__(self, instance: DagsterInstance) -> None:
        self.instance = instance
        self.cursor: str | None = None

    def tick(self) -> None:
        # What the last tick knew comes from its cursor alone, as after a restart.
        sensor = build_definitions().resolve_sensor_def("alert_sensor")
        with build_sensor_context(instance=self.instance, cursor=self.cursor) as context:
            data = sensor.evaluate_tick(context)
        self.cursor = data.cursor


@pytest.fixture
def sensor(
    instance: DagsterInstance, slack: SlackServer, monkeypatch: pytest.MonkeyPatch
) -> Sensor:
    """The sensor, whose alerts go to the server."""
    monkeypatch.setenv("ALERT_METHOD", "slack")
    monkeypatch.setenv("SLACK_WEBHOOK_URL", slack.webhook().slack_webhook_url or "")
    monkeypatch.setenv("MCQ_DAGSTER_WEBSERVER_URL", "http://dagster.example/")
    return Sensor(instance)


@pytest.fixture
def submitted(database: Database) -> Database:
    """A database with a submission and an answer in each of five hours."""
    execute(
        database,
        "INSERT INTO answers SELECT n, 7, n, 5, 1, 'A', "
        f"timestamptz '{FIRST}' + n * interval '1 h' FROM generate_series(0, 4) n",
        "INSERT INTO submissions SELECT n, 5, "
        f"timestamptz '{FIRST}' + n * interval '1 h', 'completed' FROM generate_series(0, 4) n",
    )
    return database


def run(instance: DagsterInstance, window: Window, **tags: str) -> DagsterRun:
    """Run the funnel over a window in this process, and return the run as it is recorded."""
    job = build_definitions().resolve_job_def(FACTS_JOB)
    done = job.execute_in_process(
        instance=instance,
        tags={**range_tags(window), **{f"dagster/{name}": value for name, value in tags.items()}},
        asset_selection=[AssetKey("test_funnel_fact")],
        raise_on_error=False,
    )
    found = instance.get_run_by_id(done.run_id)
    assert found is not None
    return found


def test_a_fact_that_fails_over_five_hours_is_one_alert_and_one_recovery(
    submitted: Database, spark: SparkSession, sensor: Sensor, slack: SlackServer
) -> None:
    execute(submitted, BREAK)
    told = []
    runs = []
    for hour in FIVE_HOURS.chunks(1):
        runs.append(run(sensor.instance, hour, max_retries="0"))
        sensor.tick()
        sensor.tick()
        told.append(len(slack.requests))
    assert told == [0, 1, 1, 1, 1]
    title, hours, error, link, partitions = str(slack.requests[0][2]["text"]).splitlines()
    assert title == "test_funnel_fact failed in hourly runs, on the final attempt"
    assert hours == "hours: [2024-01-01T09:00Z, 2024-01-01T11:00Z) (2 in all)"
    assert error.startswith("last error: test_funnel_fact over [2024-01-01T10:00Z, ")
    assert 'violates check constraint "broken"' in error
    assert link == f"run: http://dagster.example/runs/{runs[1].run_id}"
    assert partitions.endswith(" http://dagster.example/assets/test_funnel_fact?view=partitions")

    execute(submitted, MEND)
    run(sensor.instance, Window(FIRST, FIRST + 4 * HOUR))
    sensor.tick()
    assert len(slack.requests) == 1
    run(sensor.instance, Window(FIRST + 4 * HOUR, FIVE_HOURS.end))
    for _ in range(3):
        sensor.tick()
    assert len(slack.requests) == 2
    assert str(slack.requests[1][2]["text"]).splitlines() == [
        "test_funnel_fact recovered: all failed hours of the hourly runs are good",
        f"hours: {FIVE_HOURS} (5 in all)",
    ]
    assert [line for line in wrong_rows(submitted) if "funnel" in line] == []


def test_a_fact_that_a_check_finds_wrong_is_told_at_once_and_run_again_until_it_is_right(
    submitted: Database, spark: SparkSession, sensor: Sensor, slack: SlackServer
) -> None:
    execute(
        submitted,
        "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "NEW.completion_rate = 101; RETURN NEW; END $$",
        "CREATE TRIGGER spoil BEFORE INSERT OR UPDATE ON analytics.test_funnel_fact "
        "FOR EACH ROW EXECUTE FUNCTION spoil()",
    )
    hour = Window(FIRST, FIRST + HOUR)
    spoiled = run(sensor.instance, hour, max_retries="0")
    sensor.tick()
    sensor.tick()
    [(_, _, body)] = slack.requests
    title, hours, error, link, _ = str(body["text"]).splitlines()
    assert title == "test_funnel_fact is wrong: a check of its rows failed"
    assert hours == f"hours: {hour} (1 in all)"
    assert error == (
        f"last error: the check values_are_in_range failed (rows wrong: 1, wrong: (5)): {REMEDY}"
    )
    assert link.endswith(spoiled.run_id)
    assert (
        FIRST
        in wrong_hours(sensor.instance, submitted.engine(), load_settings())["test_funnel_fact"]
    )

    execute(submitted, "DROP FUNCTION spoil CASCADE")
    run(sensor.instance, Window(FIRST + HOUR, FIRST + 2 * HOUR))
    sensor.tick()
    assert len(slack.requests) == 1
    run(sensor.instance, hour)
    sensor.tick()
    assert str(slack.requests[1][2]["text"]).splitlines() == [
        "test_funnel_fact recovered: its rows pass the checks again",
        f"hours: {hour} (1 in all)",
    ]


def test_a_failure_that_the_daemon_will_retry_is_told_when_the_last_retry_failed(
    submitted: Database, spark: SparkSession, sensor: Sensor, slack: SlackServer
) -> None:
    execute(submitted, BREAK)
    assert run(sensor.instance, FIVE_HOURS).tags["dagster/will_retry"] == "true"
    sensor.tick()
    assert slack.requests == []
    run(sensor.instance, FIVE_HOURS, max_retries="0", backfill="monthly")
    sensor.tick()
    [(_, _, body)] = slack.requests
    assert body["text"].startswith("test_funnel_fact failed in a backfill, on the final attempt")


def test_slack_that_is_down_is_tried_at_each_tick_and_after_three_the_alert_goes_by_email(
    slack: SlackServer, smtp: SmtpServer
) -> None:
    both = replace(smtp.settings(), method="slack", slack_webhook_url=slack.url)
    state = with_message(with_message(State(), "two hours failed"), "all is well")
    slack.status = 500
    for tick in range(3):
        state, said = send_next(state, both, NOW)
        assert said.startswith("Not accepted yet: Slack refused the alert with HTTP 500")
        assert (len(slack.requests), len(smtp.mails)) == (tick + 1, 0)
    state, said = send_next(state, both, NOW)
    assert said == "Told: two hours failed"
    assert (len(slack.requests), len(smtp.mails)) == (3, 1)
    slack.status = 200
    state, said = send_next(state, both, NOW)
    assert said == "Told: all is well"
    assert (len(slack.requests), len(smtp.mails)) == (4, 1)
    assert state == State()


def test_without_email_slack_is_tried_for_ever(slack: SlackServer) -> None:
    state = with_message(State(), "two hours failed")
    slack.status = 500
    for _ in range(6):
        state, _ = send_next(state, slack.webhook(), NOW)
    slack.status = 200
    state, said = send_next(state, slack.webhook(), NOW)
    assert said == "Told: two hours failed"
    assert state == State()


def test_slack_is_left_alone_for_as_long_as_it_asks(slack: SlackServer) -> None:
    state = with_message(State(), "two hours failed")
    slack.status, slack.headers = 429, {"Retry-After": "90"}
    state, _ = send_next(state, slack.webhook(), NOW)
    slack.status = 200
    state, _ = send_next(state, slack.webhook(), NOW + timedelta(seconds=89))
    assert len(slack.requests) == 1
    state, said = send_next(state, slack.webhook(), NOW + timedelta(seconds=90))
    assert said == "Told: two hours failed"
    assert len(slack.requests) == 2


@pytest.mark.parametrize("behaviour", ["hang", "close"])
def test_an_alert_that_got_no_answer_is_not_noted_as_sent(
    slack: SlackServer, behaviour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerts, "TIMEOUT_SECONDS", 0.3)
    slack.behaviour = behaviour
    began = time.monotonic()
    state, said = send_next(with_message(State(), "two hours failed"), slack.webhook(), NOW)
    assert time.monotonic() - began < 60
    assert said.startswith("Not accepted yet: Slack")
    slack.behaviour = "answer"
    state, said = send_next(state, slack.webhook(), NOW)
    assert (state, said) == (State(), "Told: two hours failed")


def test_where_alerts_go_to_the_log_they_are_told_there() -> None:
    state, said = send_next(with_message(State(), "two hours failed"), AlertSettings(), NOW)
    assert (state, said) == (State(), "Told: two hours failed")
