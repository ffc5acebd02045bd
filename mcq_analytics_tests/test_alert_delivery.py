"""How messages are delivered: order, refusals, pauses, and email when Slack is down."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest

from mcq_analytics.alerting import send
from mcq_analytics.alerting.outbox import with_message
from mcq_analytics.alerting.state import State
from mcq_analytics.definitions.sensors import alerts
from mcq_analytics.definitions.sensors.alerts import send_waiting
from mcq_analytics.settings import AlertSettings
from mcq_analytics_tests.alert_servers import SlackServer, SmtpServer
from mcq_analytics_tests.alert_ticks import refusing, texts

NOW = datetime(2024, 1, 2, tzinfo=timezone.utc)


class Outbox:
    """Waiting messages, and ticks that send them; each tick starts from the last one's state."""

    def __init__(self, *texts: str) -> None:
        self.state = State()
        for one in texts:
            self.state = with_message(self.state, one)

    def tick(self, alerts: AlertSettings, now: datetime = NOW) -> str:
        kept: list[State] = []
        state, sent = send_waiting(
            State.from_cursor(self.state.as_cursor()), alerts, now, kept.append
        )
        # Accepted messages are saved at once: even a killed tick does not send them twice.
        assert len(kept) == len(sent.titles)
        self.state = state
        return str(sent)

    @property
    def waiting(self) -> list[str]:
        return [message.text for message in self.state.outbox]


def test_while_slack_is_down_every_tick_retries_and_after_three_email_takes_over(
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
    assert said.startswith("Sent: two hours failed; all is well. Not accepted: Slack refused")
    assert (len(slack.requests), len(smtp.mails)) == (8, 2)
    slack.status = 200
    assert outbox.tick(both) == ""
    assert (len(slack.requests), len(smtp.mails)) == (8, 2)
    assert outbox.state == State()


def test_when_slack_is_back_it_gets_the_messages_that_email_refused(
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
    assert outbox.tick(both) == "Sent: first; second; third"
    assert texts(slack) == ["first", "second", "third"]
    assert (outbox.state, smtp.mails) == (State(), [])


def test_refused_messages_do_not_hold_up_others(slack: SlackServer, smtp: SmtpServer) -> None:
    both = replace(smtp.settings(), method="slack", slack_webhook_url=slack.url)
    smtp.replies["MAIL"] = "550 not you"
    refusing(slack, "bad")
    outbox = Outbox("bad 1", "good 1", "good 2", "bad 2", "good 3")
    said = outbox.tick(both)
    assert said.startswith("Sent: good 1; good 2; good 3. Not accepted: Slack refused")
    assert outbox.waiting == ["bad 1", "bad 2"]
    outbox = Outbox("bad 1", "bad 2", "bad 3", "bad 4", "good 4")
    tries = []
    while "good 4" in outbox.waiting:
        slack.requests.clear()
        outbox.tick(both)
        tries.append(len(slack.requests))
    assert len(tries) <= 5
    assert max(tries) <= 4  # two that are refused, one that is not, and two again at most


def test_without_email_slack_is_retried_forever(slack: SlackServer) -> None:
    outbox = Outbox("two hours failed")
    slack.status = 500
    for _ in range(6):
        outbox.tick(slack.webhook())
    slack.status = 200
    assert outbox.tick(slack.webhook()) == "Sent: two hours failed"
    assert outbox.state == State()


def test_slack_gets_the_pause_that_it_asked_for(slack: SlackServer, smtp: SmtpServer) -> None:
    both = replace(smtp.settings(), method="slack", slack_webhook_url=slack.url)
    outbox = Outbox("two hours failed", "another")
    slack.status, slack.headers = 429, {"Retry-After": "90"}
    assert "again in 90 s" in outbox.tick(both)
    slack.status = 200
    for seconds in (30, 60):
        said = outbox.tick(both, NOW + timedelta(seconds=seconds))
        assert said == "Not accepted: Slack asked for a pause until 00:01:30Z"
    assert (len(slack.requests), len(smtp.mails)) == (1, 0)
    # After three ticks the messages go by email, without waiting for Slack.
    outbox.tick(both, NOW + timedelta(seconds=89))
    assert (len(slack.requests), len(smtp.mails)) == (1, 2)
    alone = Outbox("two hours failed")
    alone.state = replace(alone.state, not_before=NOW + timedelta(seconds=90))
    alone.tick(slack.webhook(), NOW + timedelta(seconds=89))
    assert len(slack.requests) == 1
    said = alone.tick(slack.webhook(), NOW + timedelta(seconds=90))
    assert said == "Sent: two hours failed"
    assert len(slack.requests) == 2


@pytest.mark.parametrize("behaviour", ["hang", "close"])
def test_an_alert_without_an_answer_does_not_count_as_sent(
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
    assert outbox.tick(slack.webhook()) == "Sent: two hours failed"
    assert outbox.state == State()


def test_a_tick_keeps_its_time_limit_however_many_messages_wait(
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


def test_alerts_can_go_to_the_log() -> None:
    outbox = Outbox("two hours failed")
    assert outbox.tick(AlertSettings()) == "Sent: two hours failed"
    assert outbox.state == State()
