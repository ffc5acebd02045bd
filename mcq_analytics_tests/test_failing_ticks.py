"""Alerts about schedules and sensors whose ticks fail."""

from __future__ import annotations

import sys
from datetime import datetime, timedelta, timezone

import pytest
from dagster import (
    DagsterError,
    DagsterInstance,
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

from mcq_analytics.definitions.sensors.alerts import NAME
from mcq_analytics.errors import McqError
from mcq_analytics_tests.alert_servers import SlackServer
from mcq_analytics_tests.alert_ticks import Sensor, sensor_to, texts

NOW = datetime(2024, 1, 2, tzinfo=timezone.utc)


@pytest.fixture
def sensor(
    instance: DagsterInstance, slack: SlackServer, monkeypatch: pytest.MonkeyPatch
) -> Sensor:
    """The sensor, with the Slack server as its channel."""
    return sensor_to(slack, instance, monkeypatch)


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
        """Record ticks that succeeded, were skipped, are running, or failed with an error."""
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


def test_a_sensor_whose_ticks_fail_is_one_alert_and_one_recovery(
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
