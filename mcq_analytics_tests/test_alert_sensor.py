"""The alert sensor over real failing runs of a real instance, and a server in Slack's place."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
from dagster import (
    AssetKey,
    DagsterError,
    DagsterInstance,
    DagsterRun,
    build_sensor_context,
)
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster._utils.error import serializable_error_info_from_exc_info
from pyspark.sql import SparkSession
from sqlalchemy import create_engine, text
from sqlalchemy.exc import ProgrammingError

from mcq_analytics.alerting import send
from mcq_analytics.alerting.outbox import with_message
from mcq_analytics.alerting.send import AlertError
from mcq_analytics.alerting.state import State
from mcq_analytics.definitions.build import FACTS_JOB, build_definitions
from mcq_analytics.definitions.checks import REMEDY
from mcq_analytics.definitions.partitions import range_tags
from mcq_analytics.definitions.run_state.hour_outcomes import wrong_hours
from mcq_analytics.definitions.sensors import alerts
from mcq_analytics.definitions.sensors.alerts import NAME, send_waiting
from mcq_analytics.definitions.sensors.kept_cursors import KeptCursor
from mcq_analytics.errors import McqError
from mcq_analytics.model.windows import HOUR, Window, parse_hour
from mcq_analytics.postgres.database import Database
from mcq_analytics.settings import AlertSettings, load_settings
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

    def known(self) -> State:
        """Return what the next tick will know."""
        return State.from_cursor(KeptCursor(self.instance, NAME, self.cursor).read())


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
        runs.append(run(sensor.instance, hour, max_retries="0", schedule_name="hourly"))
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


def test_the_last_error_is_that_of_the_latest_run_whatever_its_hour(
    submitted: Database, spark: SparkSession, sensor: Sensor, slack: SlackServer
) -> None:
    execute(submitted, BREAK)
    later = run(sensor.instance, Window(FIRST + HOUR, FIRST + 2 * HOUR), max_retries="0")
    execute(submitted, MEND, "ALTER TABLE analytics.test_funnel_fact_hour RENAME TO elsewhere")
    earlier = run(
        sensor.instance, Window(FIRST, FIRST + HOUR), max_retries="0", schedule_name="hourly"
    )
    sensor.tick()
    _, _, last, run_of_last, hours_of_last, before, run_before, *_ = texts(slack)[0].splitlines()
    assert last.startswith("last error: the table analytics.test_funnel_fact_hour is missing: ")
    assert run_of_last == f"run: http://dagster.example/runs/{earlier.run_id}"
    assert hours_of_last == f"  its hours: {Window(FIRST, FIRST + HOUR)} (1 in all)"
    assert before.startswith("earlier error: test_funnel_fact over [2024-01-01T10:00Z, ")
    assert 'violates check constraint "broken"' in before
    assert run_before == f"run by hand: http://dagster.example/runs/{later.run_id}"


def test_a_fact_that_a_check_finds_wrong_is_told_at_once_and_run_again_until_it_is_right(
    submitted: Database, spark: SparkSession, sensor: Sensor, slack: SlackServer
) -> None:
    execute(
        submitted,
        "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "NEW.avg_submit_time = 101; RETURN NEW; END $$",
        "CREATE TRIGGER spoil BEFORE INSERT OR UPDATE ON analytics.test_funnel_fact "
        "FOR EACH ROW EXECUTE FUNCTION spoil()",
    )
    spoiled = run(sensor.instance, FIVE_HOURS, max_retries="0")
    sensor.tick()
    sensor.tick()
    [(_, _, body)] = slack.requests
    title, hours, error, link, _ = str(body["text"]).splitlines()
    assert title == "test_funnel_fact is wrong: a check of its rows failed"
    assert hours == f"hours: {FIVE_HOURS} (5 in all)"
    assert error == (
        "last error: the check rows_equal_a_recompute failed (rows compared: 1, rows wrong: 1, "
        f"rows awaiting a run: 0, wrong: (5)): {REMEDY}"
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
    run(sensor.instance, FIVE_HOURS)
    sensor.tick()
    assert str(slack.requests[1][2]["text"]).splitlines() == [
        "test_funnel_fact recovered: its rows pass the checks again",
        f"hours: {FIVE_HOURS} (5 in all)",
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


class Ticks:
    """The ticks of a sensor as the daemon records them, a minute apart."""

    def __init__(self, instance: DagsterInstance, name: str, location: str = "mcq") -> None:
        origin = RemoteInstigatorOrigin(
            RemoteRepositoryOrigin(RegisteredCodeLocationOrigin(location), "__repository__"), name
        )
        self.instance = instance
        self.state = InstigatorState(
            origin, InstigatorType.SENSOR, InstigatorStatus.DECLARED_IN_CODE, SensorInstigatorData()
        )
        self.moment = NOW
        instance.add_instigator_state(self.state)

    def add(self, *outcomes: str) -> None:
        """Record ticks that succeeded, were skipped, run still, or failed with an error."""
        for outcome in outcomes:
            error = None
            if outcome not in TickStatus.__members__:
                try:
                    raise DagsterError("the tick failed") from McqError(f"comparing: {outcome}")
                except DagsterError:
                    error = serializable_error_info_from_exc_info(sys.exc_info())
            status = TickStatus.FAILURE if error else TickStatus[outcome]
            self.instance.create_tick(
                TickData(
                    self.state.instigator_origin_id,
                    self.state.name,
                    InstigatorType.SENSOR,
                    status,
                    self.moment.timestamp(),
                    error=error,
                    selector_id=self.state.selector_id,
                )
            )
            self.moment += timedelta(minutes=1)


def test_a_sensor_whose_ticks_fail_is_told_once_and_its_recovery(
    sensor: Sensor, slack: SlackServer
) -> None:
    gone = Ticks(sensor.instance, "late_data_sensor", "a location that is no more")
    gone.add("old", "old", "old")
    others = Ticks(sensor.instance, "somebody_elses_sensor")
    others.add("no", "no", "no")
    itself = Ticks(sensor.instance, NAME)
    itself.add("no", "no", "no")
    ticks = Ticks(sensor.instance, "late_data_sensor")
    ticks.moment += timedelta(hours=1)
    ticks.add("SKIPPED", "lock", "timeout")
    sensor.tick()
    assert slack.requests == []
    ticks.add("disk", "STARTED")
    for _ in range(2):
        sensor.tick()
    [told] = texts(slack)
    assert told.splitlines() == [
        "late_data_sensor does not work: its ticks fail",
        "since: 2024-01-02T01:01Z",
        "last error: comparing: disk",
        "ticks: http://dagster.example/automation",
    ]
    ticks.add("disk")
    sensor.tick()
    sensor.instance.update_instigator_state(ticks.state.with_status(InstigatorStatus.STOPPED))
    sensor.tick()
    sensor.instance.update_instigator_state(ticks.state)
    sensor.tick()
    assert len(slack.requests) == 1
    ticks.add("SKIPPED")
    for _ in range(2):
        sensor.tick()
    [_, recovery] = texts(slack)
    assert recovery.splitlines() == [
        "late_data_sensor recovered: its latest tick succeeded",
        "failing since: 2024-01-02T01:01Z",
    ]


class Outbox:
    """Messages that wait, and the ticks that send them; each begins with what the last one kept."""

    def __init__(self, *texts: str) -> None:
        self.state = State()
        for one in texts:
            self.state = with_message(self.state, one)

    def tick(self, alerts: AlertSettings, now: datetime = NOW) -> str:
        kept: list[State] = []
        state, sent = send_waiting(
            State.from_cursor(self.state.as_cursor()), alerts, now, kept.append
        )
        # Whatever was accepted is noted at once: a tick that is killed then sends it never again.
        assert len(kept) == len(sent.told)
        self.state = state
        return str(sent)

    @property
    def waiting(self) -> list[str]:
        return [message.text for message in self.state.outbox]


def texts(slack: SlackServer) -> list[str]:
    return [str(body["text"]) for _, _, body in slack.requests]


def refusing(slack: SlackServer, *words: str) -> None:
    """Let Slack refuse messages with one of the words, for good, and take all others."""
    slack.refuses = lambda body: any(word in str(body["text"]) for word in words)


def test_slack_that_is_down_is_tried_at_each_tick_and_after_three_the_alert_goes_by_email(
    slack: SlackServer, smtp: SmtpServer
) -> None:
    both = replace(smtp.settings(), method="slack", slack_webhook_url=slack.url)
    outbox = Outbox("two hours failed", "all is well")
    slack.status = 500
    for tick in range(3):
        assert outbox.tick(both).startswith("Not accepted: Slack refused the alert with HTTP 500")
        assert (len(slack.requests), len(smtp.mails)) == (2 * (tick + 1), 0)
        assert outbox.waiting == ["two hours failed", "all is well"]
    said = outbox.tick(both)
    assert said.startswith("Told: two hours failed; all is well. Not accepted: Slack refused")
    assert (len(slack.requests), len(smtp.mails)) == (8, 2)
    slack.status = 200
    assert outbox.tick(both) == ""
    assert (len(slack.requests), len(smtp.mails)) == (8, 2)
    assert outbox.state == State()


def test_slack_that_comes_back_is_used_again_though_email_has_refused(
    slack: SlackServer, smtp: SmtpServer
) -> None:
    both = replace(smtp.settings(), method="slack", slack_webhook_url=slack.url)
    outbox = Outbox("first", "second", "third")
    slack.status, smtp.replies["MAIL"] = 500, "550 not you"
    for _ in range(5):
        said = outbox.tick(both)
    assert "HTTP 500" in said
    assert "refused the sender (550)" in said
    assert smtp.verbs().count("MAIL") == 4  # two ticks, two messages each: it seems to be down
    slack.requests.clear()
    slack.status = 200
    assert outbox.tick(both) == "Told: first; second; third"
    assert texts(slack) == ["first", "second", "third"]
    assert (outbox.state, smtp.mails) == (State(), [])


def test_messages_that_nobody_accepts_hold_up_no_others(
    slack: SlackServer, smtp: SmtpServer
) -> None:
    both = replace(smtp.settings(), method="slack", slack_webhook_url=slack.url)
    smtp.replies["MAIL"] = "550 not you"
    refusing(slack, "bad")
    outbox = Outbox("bad 1", "good 1", "good 2", "bad 2", "good 3")
    said = outbox.tick(both)
    assert said.startswith("Told: good 1; good 2; good 3. Not accepted: Slack refused")
    assert outbox.waiting == ["bad 1", "bad 2"]
    outbox = Outbox("bad 1", "bad 2", "bad 3", "bad 4", "good 4")
    tries = []
    while "good 4" in outbox.waiting:
        slack.requests.clear()
        outbox.tick(both)
        tries.append(len(slack.requests))
    assert len(tries) <= 5
    assert max(tries) <= 4  # two that are refused, one that is not, and two again at most


def test_a_refused_tick_fails_with_the_reason_and_keeps_what_it_knows(
    sensor: Sensor, slack: SlackServer
) -> None:
    waiting = with_message(with_message(State(), "first"), "second").as_cursor()
    sensor.cursor = waiting
    slack.status = 403
    for tick in range(1, 3):
        with pytest.raises(
            AlertError, match=r"^Waiting: 2\. Not accepted: Slack refused the alert with HTTP 403"
        ):
            sensor.tick()
        assert sensor.cursor == waiting  # as Dagster leaves it
        assert [one.trials for one in sensor.known().outbox] == [tick, tick]
    slack.requests.clear()
    refusing(slack, "second")
    slack.status = 200
    with pytest.raises(AlertError):
        sensor.tick()
    refusing(slack)
    sensor.tick()
    assert texts(slack) == ["first", "second", "second"]
    assert sensor.cursor == State().as_cursor()
    sensor.tick()
    assert len(slack.requests) == 3
    sensor.cursor = waiting  # somebody sets it in the UI
    sensor.tick()
    assert texts(slack)[3:] == ["first", "second"]


def test_what_waits_is_sent_though_the_records_cannot_be_read(
    sensor: Sensor, slack: SlackServer
) -> None:
    sensor.cursor = with_message(State(), "two hours failed").as_cursor()
    rename = "ALTER TABLE {} RENAME TO {}"
    engine = create_engine(os.environ["MCQ_DAGSTER_URL"])
    with engine.begin() as connection:
        connection.execute(text(rename.format("event_logs", "elsewhere")))
    for _ in range(2):
        with pytest.raises(ProgrammingError, match="event_logs"):
            sensor.tick()
    with engine.begin() as connection:
        connection.execute(text(rename.format("elsewhere", "event_logs")))
    engine.dispose()
    assert texts(slack) == ["two hours failed"]
    sensor.tick()
    assert len(slack.requests) == 1


def test_without_email_slack_is_tried_for_ever(slack: SlackServer) -> None:
    outbox = Outbox("two hours failed")
    slack.status = 500
    for _ in range(6):
        outbox.tick(slack.webhook())
    slack.status = 200
    assert outbox.tick(slack.webhook()) == "Told: two hours failed"
    assert outbox.state == State()


def test_slack_is_left_alone_for_as_long_as_it_asks(slack: SlackServer, smtp: SmtpServer) -> None:
    both = replace(smtp.settings(), method="slack", slack_webhook_url=slack.url)
    outbox = Outbox("two hours failed", "another")
    slack.status, slack.headers = 429, {"Retry-After": "90"}
    assert "again in 90 s" in outbox.tick(both)
    slack.status = 200
    for seconds in (30, 60):
        said = outbox.tick(both, NOW + timedelta(seconds=seconds))
        assert said == "Not accepted: Slack asked to be left alone until 00:01:30Z"
    assert (len(slack.requests), len(smtp.mails)) == (1, 0)
    # Meanwhile it has waited for three ticks: email need not wait for Slack.
    outbox.tick(both, NOW + timedelta(seconds=89))
    assert (len(slack.requests), len(smtp.mails)) == (1, 2)
    alone = Outbox("two hours failed")
    alone.state = replace(alone.state, not_before=NOW + timedelta(seconds=90))
    alone.tick(slack.webhook(), NOW + timedelta(seconds=89))
    assert len(slack.requests) == 1
    said = alone.tick(slack.webhook(), NOW + timedelta(seconds=90))
    assert said == "Told: two hours failed"
    assert len(slack.requests) == 2


@pytest.mark.parametrize("behaviour", ["hang", "close"])
def test_an_alert_that_got_no_answer_is_not_noted_as_sent(
    slack: SlackServer, behaviour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(send, "TIMEOUT_SECONDS", 0.3)
    slack.behaviour = behaviour
    began = time.monotonic()
    outbox = Outbox("two hours failed")
    said = outbox.tick(slack.webhook())
    assert time.monotonic() - began < 60
    assert said.startswith("Not accepted: Slack")
    slack.behaviour = "answer"
    assert outbox.tick(slack.webhook()) == "Told: two hours failed"
    assert outbox.state == State()


def test_a_tick_takes_no_longer_than_it_may_however_much_waits(
    slack: SlackServer, smtp: SmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(send, "TIMEOUT_SECONDS", 0.3)
    monkeypatch.setattr(alerts, "SECONDS_TO_SEND", 0.2)
    both = replace(smtp.settings(), method="slack", slack_webhook_url=slack.url)
    slack.behaviour, smtp.greeting = "hang", "421 later"
    outbox = Outbox(*map(str, range(20)))
    outbox.state = replace(
        outbox.state, outbox=tuple(replace(one, trials=9) for one in outbox.state.outbox)
    )
    said = outbox.tick(both)
    assert len(slack.requests) == 1
    assert "Slack did not answer" in said
    assert "refused the alert (421)" in said  # email has its turn though the time is over


def test_where_alerts_go_to_the_log_they_are_told_there() -> None:
    outbox = Outbox("two hours failed")
    assert outbox.tick(AlertSettings()) == "Told: two hours failed"
    assert outbox.state == State()
