"""The alert sensor with real failing runs of a real instance, and a fake Slack server."""

from __future__ import annotations

import os

import pytest
from dagster import (
    DagsterInstance,
    DagsterRun,
)
from pyspark.sql import SparkSession
from sqlalchemy import create_engine, text
from sqlalchemy.exc import ProgrammingError

from mcq_analytics.alerting.outbox import with_message
from mcq_analytics.alerting.send import AlertError
from mcq_analytics.alerting.state import State
from mcq_analytics.definitions.build import FACTS_JOB, build_definitions
from mcq_analytics.definitions.checks import REMEDY
from mcq_analytics.definitions.partitions import range_tags
from mcq_analytics.definitions.run_state.hour_outcomes import wrong_hours
from mcq_analytics.model.windows import HOUR, Window, parse_hour
from mcq_analytics.postgres.database import Database
from mcq_analytics.settings import load_settings
from mcq_analytics_tests.alert_servers import SlackServer
from mcq_analytics_tests.alert_ticks import Sensor, refusing, sensor_to, texts
from mcq_analytics_tests.facts_of import execute, wrong_rows

FIRST = parse_hour("2024-01-01T09:00")
FIVE_HOURS = Window(FIRST, FIRST + 5 * HOUR)
BREAK = "ALTER TABLE analytics.test_funnel_fact ADD CONSTRAINT broken CHECK (total_submissions < 0)"
MEND = "ALTER TABLE analytics.test_funnel_fact DROP CONSTRAINT broken"


@pytest.fixture
def sensor(
    instance: DagsterInstance, slack: SlackServer, monkeypatch: pytest.MonkeyPatch
) -> Sensor:
    """The sensor, with the Slack server as its channel."""
    return sensor_to(slack, instance, monkeypatch)


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
    """Run the facts over a window in this process, and return the recorded run."""
    job = build_definitions(load_settings()).resolve_job_def(FACTS_JOB)
    done = job.execute_in_process(
        instance=instance,
        tags={**range_tags(window), **{f"dagster/{name}": value for name, value in tags.items()}},
        raise_on_error=False,
    )
    found = instance.get_run_by_id(done.run_id)
    assert found is not None
    return found


def test_five_failed_hours_are_one_alert_and_one_recovery(
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
    assert title == "the facts failed in hourly runs, on the final attempt"
    assert hours == "hours: [2024-01-01T09:00Z, 2024-01-01T11:00Z) (2 in all)"
    assert error.startswith("last error: the facts over [2024-01-01T10:00Z, ")
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
        "the facts recovered: all failed hours of the hourly runs are good",
        f"hours: {FIVE_HOURS} (5 in all)",
    ]
    assert wrong_rows(submitted) == []


def test_the_last_error_comes_from_the_latest_run_not_from_the_latest_hour(
    submitted: Database, spark: SparkSession, sensor: Sensor, slack: SlackServer
) -> None:
    execute(submitted, BREAK)
    later = run(sensor.instance, Window(FIRST + HOUR, FIRST + 2 * HOUR), max_retries="0")
    execute(submitted, MEND, "ALTER TABLE analytics.student_test_hour RENAME TO elsewhere")
    earlier = run(
        sensor.instance, Window(FIRST, FIRST + HOUR), max_retries="0", schedule_name="hourly"
    )
    sensor.tick()
    _, _, last, run_of_last, hours_of_last, before, run_before, *_ = texts(slack)[0].splitlines()
    assert last.startswith("last error: the table analytics.student_test_hour is missing: ")
    assert run_of_last == f"run: http://dagster.example/runs/{earlier.run_id}"
    assert hours_of_last == f"  its hours: {Window(FIRST, FIRST + HOUR)} (1 in all)"
    assert before.startswith("earlier error: the facts over [2024-01-01T10:00Z, ")
    assert 'violates check constraint "broken"' in before
    assert run_before == f"run by hand: http://dagster.example/runs/{later.run_id}"


def test_a_wrong_fact_is_an_alert_at_once_until_its_hours_are_right_again(
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
        "last error: the check rows_equal_a_recompute failed (student tests compared: 6, "
        f"rows wrong: 1, rows awaiting a run: 0, wrong: (5)): {REMEDY}"
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
        "test_funnel_fact recovered: the rows pass the checks again",
        f"hours: {FIVE_HOURS} (5 in all)",
    ]


def test_a_failure_is_an_alert_only_after_the_last_retry(
    submitted: Database, spark: SparkSession, sensor: Sensor, slack: SlackServer
) -> None:
    execute(submitted, BREAK)
    assert run(sensor.instance, FIVE_HOURS).tags["dagster/will_retry"] == "true"
    sensor.tick()
    assert slack.requests == []
    run(sensor.instance, FIVE_HOURS, max_retries="0", backfill="monthly")
    sensor.tick()
    [(_, _, body)] = slack.requests
    assert body["text"].startswith("the facts failed in a backfill, on the final attempt")


def test_a_tick_whose_messages_are_refused_fails_with_the_reason_and_keeps_its_state(
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


def test_waiting_messages_are_sent_even_if_dagsters_records_cannot_be_read(
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
