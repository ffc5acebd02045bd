"""Alerts to the log and to Slack, against a real HTTP server on this machine. Nothing leaves it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import mcq_analytics
from mcq_analytics.alerting import send
from mcq_analytics.errors import McqError, UsageError
from mcq_analytics.settings import AlertSettings
from mcq_analytics_tests.alert_servers import (
    TOKEN,
    WEBHOOK_SECRET,
    SlackServer,
)
from mcq_analytics_tests.conftest import Refusal


def test_commands_print_an_alert_error_as_one_line() -> None:
    assert issubclass(send.AlertError, McqError)
    assert send.AlertError("refused").retry_after is None


@pytest.mark.parametrize("message", ["", " \n\t"])
def test_an_empty_message_is_a_usage_error_with_every_method(message: str) -> None:
    for method in ("log", "slack", "email"):
        with pytest.raises(UsageError, match="empty"):
            send.send_alert(message, AlertSettings(method=method))


def test_the_log_method_writes_a_warning_and_leaves_percent_signs_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    send.send_alert("100%s of the hours failed", AlertSettings())
    assert caplog.record_tuples == [
        ("mcq_analytics.alerting.send", logging.WARNING, "100%s of the hours failed")
    ]


def test_the_public_function_reads_the_settings(
    slack: SlackServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MCQ_ENV", "dev")
    monkeypatch.setenv("ALERT_METHOD", "slack")
    monkeypatch.setenv("SLACK_WEBHOOK_URL", slack.webhook().slack_webhook_url or "")
    mcq_analytics.send_alert("late")
    assert [body for _, _, body in slack.requests] == [{"text": "late"}]


def test_a_webhook_gets_the_message_once(slack: SlackServer) -> None:
    send.send_alert("late: é\nsecond line", slack.webhook())
    [(path, _, body)] = slack.requests
    assert path == f"/services/{WEBHOOK_SECRET}"
    assert body == {"text": "late: é\nsecond line"}


def test_a_webhook_wins_over_a_token(slack: SlackServer) -> None:
    both = replace(slack.token(), slack_webhook_url=slack.webhook().slack_webhook_url)
    send.send_alert("late", both)
    assert [path for path, _, _ in slack.requests] == [f"/services/{WEBHOOK_SECRET}"]


def test_mentions_and_links_are_escaped_for_slack(slack: SlackServer) -> None:
    send.send_alert("""<!channel> & "it's" <class 'X'>""", slack.webhook())
    [(_, _, body)] = slack.requests
    assert body["text"] == """&lt;!channel&gt; &amp; "it's" &lt;class 'X'&gt;"""


def test_a_token_posts_the_message_once_to_the_channel(slack: SlackServer) -> None:
    slack.body = '{"ok": true}'
    send.send_alert("late", slack.token())
    [(path, headers, body)] = slack.requests
    assert path == "/chat.postMessage"
    assert headers["Authorization"] == f"Bearer {TOKEN}"
    assert body == {"channel": "#alerts", "text": "late"}


def test_a_base_url_keeps_its_path(slack: SlackServer) -> None:
    slack.body = '{"ok": true}'
    for base_url in (f"{slack.url}/api", f"{slack.url}/api/"):
        send.send_alert("late", replace(slack.token(), slack_base_url=base_url))
    assert [path for path, _, _ in slack.requests] == ["/api/chat.postMessage"] * 2


METHODS = pytest.mark.parametrize(
    ("configured", "remedy"),
    [(SlackServer.webhook, "SLACK_WEBHOOK_URL"), (SlackServer.token, "SLACK_TOKEN")],
    ids=["webhook", "token"],
)
Configured = Callable[[SlackServer], AlertSettings]


@METHODS
@pytest.mark.parametrize(("header", "seconds"), [("30", 30.0), ("0", 0.0), ("1.5", 1.5)])
def test_too_many_requests_names_the_seconds_to_wait(
    *,
    slack: SlackServer,
    refusal: Refusal,
    configured: Configured,
    remedy: str,
    header: str,
    seconds: float,
) -> None:
    slack.status, slack.headers = 429, {"Retry-After": header}
    slack.body = '{"ok": false, "error": "ratelimited"}'
    error = refusal(configured(slack))
    assert error.retry_after == seconds
    assert f"try again in {header} s (Retry-After)" in str(error)
    assert "429" in str(error)
    assert len(slack.requests) == 1


@METHODS
@pytest.mark.parametrize(
    "headers",
    [{}, *({"Retry-After": text} for text in ("soon", "-1", "nan", "inf"))],
    ids=str,
)
def test_too_many_requests_without_a_number_of_seconds_says_later(
    slack: SlackServer,
    refusal: Refusal,
    configured: Configured,
    remedy: str,
    headers: dict[str, str],
) -> None:
    slack.status, slack.headers = 429, headers
    error = refusal(configured(slack))
    assert error.retry_after is None
    assert "try again later" in str(error)


@METHODS
def test_a_server_error_names_the_status_and_what_to_check(
    slack: SlackServer, refusal: Refusal, configured: Configured, remedy: str
) -> None:
    slack.status, slack.body = 500, f"<html>\nfailed: Bearer {TOKEN}\n</html>"
    error = refusal(configured(slack))
    assert "HTTP 500" in str(error)
    assert remedy in str(error)
    assert error.retry_after is None


@METHODS
def test_a_server_that_hangs_is_given_up_after_the_timeout(
    slack: SlackServer,
    refusal: Refusal,
    configured: Configured,
    remedy: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(send, "TIMEOUT_SECONDS", 0.2)
    slack.behaviour = "hang"
    error = refusal(configured(slack))
    assert "did not answer within 0.2 s" in str(error)
    assert remedy in str(error)
    assert len(slack.requests) == 1


@METHODS
def test_a_closed_connection_is_an_error_and_the_message_is_not_posted_again(
    slack: SlackServer, refusal: Refusal, configured: Configured, remedy: str
) -> None:
    slack.behaviour = "close"
    error = refusal(configured(slack))
    assert "Slack was not reached" in str(error)
    assert remedy in str(error)
    assert len(slack.requests) == 1


@METHODS
def test_a_port_where_nothing_listens_is_an_error(
    slack: SlackServer, refusal: Refusal, configured: Configured, remedy: str
) -> None:
    settings = configured(slack)
    slack.shutdown()
    slack.server_close()
    error = refusal(settings)
    assert "ConnectionRefusedError" in str(error)
    assert remedy in str(error)


@METHODS
@pytest.mark.parametrize("charset", ["utf-8", "no-such-charset"])
def test_an_unreadable_answer_is_an_error(
    slack: SlackServer, refusal: Refusal, configured: Configured, remedy: str, charset: str
) -> None:
    slack.headers = {"Content-Type": f"text/html; charset={charset}"}
    slack.body = "<html>\nsign in\n</html>"
    assert remedy in str(refusal(configured(slack)))


def test_a_webhook_that_redirects_to_a_web_page_has_not_accepted_the_alert(
    slack: SlackServer, refusal: Refusal
) -> None:
    slack.status, slack.headers = 302, {"Location": f"{slack.url}/page"}
    assert "web page" in str(refusal(slack.webhook()))


@pytest.mark.parametrize("status", [400, 403, 404, 410])
def test_the_reason_given_by_a_webhook_is_named(
    slack: SlackServer, refusal: Refusal, status: int
) -> None:
    slack.status, slack.body = status, "channel_is_archived"
    assert f"HTTP {status} (channel_is_archived)" in str(refusal(slack.webhook()))


@pytest.mark.parametrize(
    "url",
    [
        f"hooks.example.org/{WEBHOOK_SECRET}",
        f"ftp://hooks.example.org/{WEBHOOK_SECRET}",
        f"http:///{WEBHOOK_SECRET}",
        f"http://127.0.0.1:port/{WEBHOOK_SECRET}",
        f"http://127.0.0.1:1/{WEBHOOK_SECRET} {WEBHOOK_SECRET}",
        f"http://[::1/{WEBHOOK_SECRET}",
        f"http://127.0.0.1:1/é{WEBHOOK_SECRET}",
    ],
)
def test_a_malformed_webhook_url_is_refused_without_showing_it(
    slack: SlackServer, refusal: Refusal, url: str
) -> None:
    error = refusal(AlertSettings(method="slack", slack_webhook_url=url))
    assert "check SLACK_WEBHOOK_URL" in str(error)


def test_the_reason_given_by_the_api_is_named(slack: SlackServer, refusal: Refusal) -> None:
    slack.body = '{"ok": false, "error": "channel_not_found"}'
    error = refusal(slack.token())
    assert "(channel_not_found)" in str(error)
    assert "SLACK_CHANNEL" in str(error)


@pytest.mark.parametrize(
    "body",
    [
        "",
        "[]",
        "[1]",
        '"ok"',
        "{}",
        '{"ok": false}',
        '{"ok": false, "error": null}',
        json.dumps({"ok": False, "error": f"two\nlines {TOKEN}"}),
    ],
)
def test_an_api_answer_without_ok_is_a_refusal(
    slack: SlackServer, refusal: Refusal, body: str
) -> None:
    slack.body = body
    assert "check SLACK_TOKEN" in str(refusal(slack.token()))


@pytest.mark.parametrize(
    "token", [None, "", f"{TOKEN}\n", f"{TOKEN} ", f"\r\n{TOKEN}", f"é{TOKEN}"]
)
def test_a_token_that_is_no_valid_header_is_refused_without_showing_it(
    slack: SlackServer, refusal: Refusal, token: str | None
) -> None:
    assert "SLACK_TOKEN" in str(refusal(replace(slack.token(), slack_token=token)))
    assert slack.requests == []
