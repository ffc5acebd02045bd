"""The alert sensor of an instance, whose ticks tests trigger, and what it sent to Slack."""

from __future__ import annotations

import pytest
from dagster import (
    DagsterInstance,
    build_sensor_context,
)

from mcq_analytics.alerting.state import State
from mcq_analytics.definitions.build import build_definitions
from mcq_analytics.definitions.sensors.alerts import NAME
from mcq_analytics.definitions.sensors.kept_cursors import KeptCursor
from mcq_analytics.settings import load_settings
from mcq_analytics_tests.alert_servers import SlackServer


class Sensor:
    """The alert sensor of an instance, which ticks when a test says so."""

    def __init__(self, instance: DagsterInstance) -> None:
        self.instance = instance
        self.cursor: str | None = None

    def tick(self) -> None:
        # What the last tick knew comes from its cursor alone, as after a restart.
        sensor = build_definitions(load_settings()).resolve_sensor_def("alert_sensor")
        with build_sensor_context(instance=self.instance, cursor=self.cursor) as context:
            data = sensor.evaluate_tick(context)
        self.cursor = data.cursor

    def known(self) -> State:
        """Return what the next tick will know."""
        return State.from_cursor(KeptCursor(self.instance, NAME, self.cursor).read())


def sensor_to(slack: SlackServer, instance: DagsterInstance, patch: pytest.MonkeyPatch) -> Sensor:
    """Return the sensor of an instance, with settings that send its alerts to a server."""
    patch.setenv("ALERT_METHOD", "slack")
    patch.setenv("SLACK_WEBHOOK_URL", slack.webhook().slack_webhook_url or "")
    patch.setenv("MCQ_DAGSTER_WEBSERVER_URL", "http://dagster.example/")
    return Sensor(instance)


def texts(slack: SlackServer) -> list[str]:
    """Return the texts that Slack got, in order."""
    return [str(body["text"]) for _, _, body in slack.requests]


def refusing(slack: SlackServer, *words: str) -> None:
    """Let Slack refuse messages with one of the words, for good, and take all others."""
    slack.refuses = lambda body: any(word in str(body["text"]) for word in words)
