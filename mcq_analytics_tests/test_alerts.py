"""Tests of `alerts` against real HTTP and SMTP servers on this machine. Nothing leaves it."""

from __future__ import annotations

import json
import logging
import ssl
import traceback
from collections.abc import Callable
from dataclasses import replace
from email import message_from_bytes, policy
from pathlib import Path

import pytest

import mcq_analytics
from mcq_analytics.alerting import send
from mcq_analytics.errors import McqError, UsageError
from mcq_analytics.settings import AlertSettings, load_settings
from mcq_analytics_tests.alert_servers import (
    PASSWORD,
    SECRETS,
    TOKEN,
    WEBHOOK_SECRET,
    SlackServer,
    SmtpServer,
)
from mcq_analytics_tests.servers import self_signed_certificate


@pytest.fixture
def refusal(caplog: pytest.LogCaptureFixture) -> Callable[[AlertSettings], send.AlertError]:
    """Send an alert that is refused; its error is one line, and no secret is in it or in a log."""

    def refused(settings: AlertSettings) -> send.AlertError:
        caplog.set_level(logging.DEBUG)
        with pytest.raises(send.AlertError) as caught:
            send.send_alert("the last two runs failed", settings)
        shown = "".join(traceback.format_exception(caught.value))
        assert len(str(caught.value).splitlines()) == 1
        for secret in SECRETS:
            assert secret not in str(caught.value)
            assert secret not in shown
            assert secret not in caplog.text
        return caught.value

    return refused


Refusal = Callable[[AlertSettings], send.AlertError]


def test_an_alert_error_is_one_that_a_command_prints_in_one_line() -> None:
    assert issubclass(send.AlertError, McqError)
    assert send.AlertError("refused").retry_after is None


@pytest.mark.parametrize("message", ["", " \n\t"])
def test_an_empty_message_is_a_usage_error_whatever_the_method(message: str) -> None:
    for method in ("log", "slack", "email"):
        with pytest.raises(UsageError, match="empty"):
            send.send_alert(message, AlertSettings(method=method))


def test_an_unknown_method_is_a_usage_error_that_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="'pager': set ALERT_METHOD to one of log, slack, email"):
        send.send_alert("late", AlertSettings(method="pager"))


def test_the_log_method_writes_a_warning_and_does_not_read_percent_signs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    send.send_alert("100%s of the hours failed", AlertSettings())
    assert caplog.record_tuples == [
        ("mcq_analytics.alerting.send", logging.WARNING, "100%s of the hours failed")
    ]


def test_without_settings_those_of_the_environment_are_used(
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


def test_what_slack_would_read_as_a_mention_or_a_link_is_escaped(slack: SlackServer) -> None:
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


def test_a_base_url_with_a_path_keeps_it(slack: SlackServer) -> None:
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
def test_a_connection_that_is_closed_is_an_error_and_the_message_is_not_posted_again(
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
def test_an_answer_that_cannot_be_read_is_an_error(
    slack: SlackServer, refusal: Refusal, configured: Configured, remedy: str, charset: str
) -> None:
    slack.headers = {"Content-Type": f"text/html; charset={charset}"}
    slack.body = "<html>\nsign in\n</html>"
    assert remedy in str(refusal(configured(slack)))


def test_a_webhook_that_redirects_to_a_page_has_not_accepted_the_alert(
    slack: SlackServer, refusal: Refusal
) -> None:
    slack.status, slack.headers = 302, {"Location": f"{slack.url}/page"}
    assert "web page" in str(refusal(slack.webhook()))


@pytest.mark.parametrize("status", [400, 403, 404, 410])
def test_the_reason_that_a_webhook_gives_is_named(
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


def test_the_reason_that_the_api_gives_is_named(slack: SlackServer, refusal: Refusal) -> None:
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
def test_an_answer_of_the_api_without_ok_is_a_refusal(
    slack: SlackServer, refusal: Refusal, body: str
) -> None:
    slack.body = body
    assert "check SLACK_TOKEN" in str(refusal(slack.token()))


@pytest.mark.parametrize(
    "token", [None, "", f"{TOKEN}\n", f"{TOKEN} ", f"\r\n{TOKEN}", f"é{TOKEN}"]
)
def test_a_token_that_cannot_be_a_header_is_refused_without_showing_it(
    slack: SlackServer, refusal: Refusal, token: str | None
) -> None:
    assert "SLACK_TOKEN" in str(refusal(replace(slack.token(), slack_token=token)))
    assert slack.requests == []


def test_a_mail_has_sender_recipients_subject_and_the_whole_message(smtp: SmtpServer) -> None:
    send.send_alert("submissions are laté\n\n.hours: 3\n", smtp.settings())
    [written] = smtp.mails
    mail = message_from_bytes(written, policy=policy.default)
    assert mail["From"] == "mcq@example.org"
    assert mail["To"] == "one@example.org, two@example.org"
    assert mail["Subject"] == "mcq_analytics: submissions are laté"
    assert mail.get_content().splitlines() == ["submissions are laté", "", ".hours: 3"]
    assert "AUTH" not in smtp.verbs()
    assert "STARTTLS" not in smtp.verbs()


@pytest.mark.parametrize("first_line", ["word " * 60, "x" * 300], ids=["words", "one word"])
def test_a_long_first_line_is_shortened_in_the_subject_only(
    smtp: SmtpServer, first_line: str
) -> None:
    send.send_alert(f"\n{first_line}\nBcc: more@example.org", smtp.settings())
    [written] = smtp.mails
    mail = message_from_bytes(written, policy=policy.default)
    subject = mail["Subject"].removeprefix("mcq_analytics: ")
    assert subject.endswith("...")
    assert first_line.startswith(subject.removesuffix("..."))
    assert 75 < len(subject) <= send.SUBJECT_WIDTH
    assert mail["Bcc"] is None
    assert first_line.strip() in mail.get_content()


def with_login(settings: AlertSettings) -> AlertSettings:
    return replace(settings, smtp_user="mcq", smtp_password=PASSWORD)


def in_the_clear(settings: AlertSettings) -> AlertSettings:
    return replace(with_login(settings), smtp_allow_plaintext=True)


def test_a_login_without_tls_is_refused_before_a_connection_unless_it_is_allowed(
    smtp: SmtpServer, refusal: Refusal
) -> None:
    smtp.features = ("AUTH PLAIN",)
    assert "set SMTP_STARTTLS=true" in str(refusal(with_login(smtp.settings())))
    assert smtp.commands == []
    send.send_alert("late", in_the_clear(smtp.settings()))
    assert "AUTH" in smtp.verbs()


@pytest.mark.parametrize(
    "settings",
    [
        {"SMTP_PORT": "465"},
        {"SMTP_SSL": "true"},
        {"SMTP_PORT": "587", "SMTP_STARTTLS": " On"},
        {"SMTP_ALLOW_PLAINTEXT": "1"},
    ],
    ids=str,
)
def test_a_login_is_set_with_tls_of_either_kind_or_by_who_allows_it_without(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str]
) -> None:
    given = {
        "ALERT_METHOD": "email",
        "ALERT_EMAIL_FROM": "mcq@example.org",
        "ALERT_EMAIL_TO": "one@example.org",
        "SMTP_USER": "mcq",
        **settings,
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    found = load_settings().alerts
    assert found.smtp_ssl == ("SMTP_PORT" in settings and "SMTP_STARTTLS" not in settings) or (
        "SMTP_SSL" in settings
    )
    assert found.smtp_starttls == ("SMTP_STARTTLS" in settings)


def test_a_user_of_mail_that_is_not_sent_is_let_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMTP_USER", "mcq")
    assert load_settings().alerts.method == "log"


def test_a_user_is_logged_in_before_the_mail(smtp: SmtpServer) -> None:
    smtp.features = ("AUTH PLAIN",)
    send.send_alert("late", in_the_clear(smtp.settings()))
    assert smtp.verbs().index("AUTH") < smtp.verbs().index("MAIL")
    assert len(smtp.mails) == 1


@pytest.mark.parametrize(
    ("command", "reply", "named"),
    [
        ("MAIL", "550 not you", "refused the sender (550): check ALERT_EMAIL_FROM"),
        ("RCPT", "550 unknown", "refused every recipient (550): check ALERT_EMAIL_TO"),
        ("DATA", "554 not now", "refused the alert (554)"),
        (".", f"552 too large {PASSWORD}", "refused the alert (552)"),
        ("MAIL", "close", "SMTPServerDisconnected"),
        ("MAIL", "hang", "broke off"),
        ("EHLO", "hang", "broke off"),
    ],
)
def test_a_mail_that_is_refused_is_an_error_that_says_why(
    *,
    smtp: SmtpServer,
    refusal: Refusal,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    reply: str,
    named: str,
) -> None:
    monkeypatch.setattr(send, "TIMEOUT_SECONDS", 0.3)
    smtp.replies = {command: reply}
    assert named in str(refusal(smtp.settings()))
    assert smtp.mails == []


def test_a_mail_server_that_turns_everyone_away_is_named(
    smtp: SmtpServer, refusal: Refusal
) -> None:
    smtp.greeting = "554 no service"
    error = refusal(smtp.settings())
    assert f"127.0.0.1:{smtp.server_address[1]} refused the alert (554)" in str(error)


def test_a_mail_server_that_is_not_there_is_an_error(smtp: SmtpServer, refusal: Refusal) -> None:
    settings = smtp.settings()
    smtp.shutdown()
    smtp.server_close()
    assert "(ConnectionRefusedError): check SMTP_HOST and SMTP_PORT" in str(refusal(settings))


def test_a_login_that_is_refused_names_the_settings_and_not_the_password(
    smtp: SmtpServer, refusal: Refusal
) -> None:
    smtp.features = ("AUTH PLAIN",)
    smtp.replies = {"AUTH": f"535 bad password {PASSWORD}"}
    error = refusal(in_the_clear(smtp.settings()))
    assert "refused the login (535): check SMTP_USER and SMTP_PASSWORD" in str(error)


def test_a_login_that_the_server_does_not_offer_is_an_error(
    smtp: SmtpServer, refusal: Refusal
) -> None:
    assert "SMTP_USER" in str(refusal(in_the_clear(smtp.settings())))


def test_a_password_that_smtp_cannot_carry_is_refused_without_showing_it(
    smtp: SmtpServer, refusal: Refusal
) -> None:
    smtp.features = ("AUTH PLAIN",)
    settings = replace(in_the_clear(smtp.settings()), smtp_password=f"é{PASSWORD}")
    assert "SMTP_PASSWORD for special characters" in str(refusal(settings))


def test_a_sender_of_two_lines_adds_no_header(smtp: SmtpServer, refusal: Refusal) -> None:
    settings = replace(smtp.settings(), email_from="mcq@example.org\nBcc: more@example.org")
    assert "check ALERT_EMAIL_FROM" in str(refusal(settings))
    assert smtp.mails == []


def test_a_recipient_that_is_refused_beside_one_that_is_not_is_logged(
    smtp: SmtpServer, caplog: pytest.LogCaptureFixture
) -> None:
    smtp.replies = {"RCPT TO:<TWO@EXAMPLE.ORG>": "550 unknown"}
    send.send_alert("late", smtp.settings())
    assert len(smtp.mails) == 1
    assert "refused two@example.org: check ALERT_EMAIL_TO" in caplog.text


@pytest.mark.parametrize("reply", ["421 too busy", "close", "hang"])
def test_a_mail_that_was_accepted_stays_so_however_the_server_takes_its_leave(
    smtp: SmtpServer, monkeypatch: pytest.MonkeyPatch, reply: str
) -> None:
    monkeypatch.setattr(send, "TIMEOUT_SECONDS", 0.3)
    smtp.replies = {"QUIT": reply}
    send.send_alert("late", smtp.settings())
    assert len(smtp.mails) == 1


@pytest.fixture
def certificate(smtp: SmtpServer, tmp_path: Path) -> Path:
    """Let the mail server offer STARTTLS with a certificate that nobody has signed."""
    path, key = self_signed_certificate(tmp_path, "IP:127.0.0.1")
    smtp.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    smtp.tls.load_cert_chain(path, key)
    smtp.features = ("STARTTLS", "AUTH PLAIN")
    return path


def test_starttls_comes_before_the_login(
    smtp: SmtpServer, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    send.send_alert("late", replace(with_login(smtp.settings()), smtp_starttls=True))
    assert smtp.verbs()[:4] == ["EHLO", "STARTTLS", "EHLO", "AUTH"]
    assert len(smtp.mails) == 1


def test_a_certificate_that_is_not_trusted_gets_no_password(
    smtp: SmtpServer, certificate: Path, refusal: Refusal
) -> None:
    error = refusal(replace(with_login(smtp.settings()), smtp_starttls=True))
    assert "no trusted TLS connection (SSLCertVerificationError)" in str(error)
    assert smtp.verbs() == ["EHLO", "STARTTLS"]


def test_a_server_without_starttls_gets_no_password(smtp: SmtpServer, refusal: Refusal) -> None:
    smtp.features = ("AUTH PLAIN",)
    error = refusal(replace(with_login(smtp.settings()), smtp_starttls=True))
    assert "check SMTP_STARTTLS" in str(error)
    assert "AUTH" not in smtp.verbs()


def test_where_tls_is_spoken_from_the_first_octet_on_the_login_comes_after_it(
    smtp: SmtpServer, certificate: Path, monkeypatch: pytest.MonkeyPatch, refusal: Refusal
) -> None:
    smtp.features, smtp.implicit_tls = ("AUTH PLAIN",), True
    settings = replace(with_login(smtp.settings()), smtp_ssl=True)
    assert "no trusted TLS connection" in str(refusal(settings))
    assert smtp.commands == []
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    send.send_alert("late", replace(settings, smtp_starttls=True))
    assert smtp.verbs()[:2] == ["EHLO", "AUTH"]
    assert len(smtp.mails) == 1
