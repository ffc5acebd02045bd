"""Alerts by email, against a real SMTP server on this machine. Nothing leaves it."""

from __future__ import annotations

import ssl
from dataclasses import replace
from email import message_from_bytes, policy
from pathlib import Path

import pytest

from mcq_analytics.alerting import send
from mcq_analytics.settings import AlertSettings, load_settings
from mcq_analytics_tests.alert_servers import (
    PASSWORD,
    SmtpServer,
)
from mcq_analytics_tests.conftest import Refusal
from mcq_analytics_tests.servers import self_signed_certificate


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


def test_a_login_without_tls_is_refused_before_connecting_unless_allowed(
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
def test_a_login_is_accepted_with_starttls_with_implicit_tls_or_if_plaintext_is_allowed(
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


def test_an_smtp_user_without_tls_is_accepted_if_no_mail_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SMTP_USER", "mcq")
    assert load_settings().alerts.method == "log"


def test_the_login_comes_before_the_mail(smtp: SmtpServer) -> None:
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
        ("MAIL", "hang", "hung up"),
        ("EHLO", "hang", "hung up"),
    ],
)
def test_a_refused_mail_is_an_error_with_the_reason(
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


def test_a_mail_server_that_refuses_every_connection_is_named(
    smtp: SmtpServer, refusal: Refusal
) -> None:
    smtp.greeting = "554 no service"
    error = refusal(smtp.settings())
    assert f"127.0.0.1:{smtp.server_address[1]} refused the alert (554)" in str(error)


def test_an_absent_mail_server_is_an_error(smtp: SmtpServer, refusal: Refusal) -> None:
    settings = smtp.settings()
    smtp.shutdown()
    smtp.server_close()
    assert "(ConnectionRefusedError): check SMTP_HOST and SMTP_PORT" in str(refusal(settings))


def test_a_refused_login_names_the_settings_and_not_the_password(
    smtp: SmtpServer, refusal: Refusal
) -> None:
    smtp.features = ("AUTH PLAIN",)
    smtp.replies = {"AUTH": f"535 bad password {PASSWORD}"}
    error = refusal(in_the_clear(smtp.settings()))
    assert "refused the login (535): check SMTP_USER and SMTP_PASSWORD" in str(error)


def test_a_server_without_login_is_an_error(smtp: SmtpServer, refusal: Refusal) -> None:
    assert "SMTP_USER" in str(refusal(in_the_clear(smtp.settings())))


def test_a_password_that_smtp_cannot_carry_is_refused_without_showing_it(
    smtp: SmtpServer, refusal: Refusal
) -> None:
    smtp.features = ("AUTH PLAIN",)
    settings = replace(in_the_clear(smtp.settings()), smtp_password=f"é{PASSWORD}")
    assert "SMTP_PASSWORD for special characters" in str(refusal(settings))


def test_a_sender_with_a_line_break_adds_no_header(smtp: SmtpServer, refusal: Refusal) -> None:
    settings = replace(smtp.settings(), email_from="mcq@example.org\nBcc: more@example.org")
    assert "check ALERT_EMAIL_FROM" in str(refusal(settings))
    assert smtp.mails == []


def test_a_refused_recipient_is_logged_if_another_was_accepted(
    smtp: SmtpServer, caplog: pytest.LogCaptureFixture
) -> None:
    smtp.replies = {"RCPT TO:<TWO@EXAMPLE.ORG>": "550 unknown"}
    send.send_alert("late", smtp.settings())
    assert len(smtp.mails) == 1
    assert "refused two@example.org: check ALERT_EMAIL_TO" in caplog.text


@pytest.mark.parametrize("reply", ["421 too busy", "close", "hang"])
def test_an_accepted_mail_stays_accepted_however_the_server_ends_the_connection(
    smtp: SmtpServer, monkeypatch: pytest.MonkeyPatch, reply: str
) -> None:
    monkeypatch.setattr(send, "TIMEOUT_SECONDS", 0.3)
    smtp.replies = {"QUIT": reply}
    send.send_alert("late", smtp.settings())
    assert len(smtp.mails) == 1


@pytest.fixture
def certificate(smtp: SmtpServer, tmp_path: Path) -> Path:
    """Let the mail server offer STARTTLS with a self-signed certificate."""
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


def test_a_server_with_an_untrusted_certificate_gets_no_password(
    smtp: SmtpServer, certificate: Path, refusal: Refusal
) -> None:
    error = refusal(replace(with_login(smtp.settings()), smtp_starttls=True))
    assert "is not trusted (SSLCertVerificationError)" in str(error)
    assert smtp.verbs() == ["EHLO", "STARTTLS"]


def test_a_server_without_starttls_gets_no_password(smtp: SmtpServer, refusal: Refusal) -> None:
    smtp.features = ("AUTH PLAIN",)
    error = refusal(replace(with_login(smtp.settings()), smtp_starttls=True))
    assert "check SMTP_STARTTLS" in str(error)
    assert "AUTH" not in smtp.verbs()


def test_with_implicit_tls_the_login_comes_after_the_handshake(
    smtp: SmtpServer, certificate: Path, monkeypatch: pytest.MonkeyPatch, refusal: Refusal
) -> None:
    smtp.features, smtp.implicit_tls = ("AUTH PLAIN",), True
    settings = replace(with_login(smtp.settings()), smtp_ssl=True)
    assert "is not trusted" in str(refusal(settings))
    assert smtp.commands == []
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    send.send_alert("late", replace(settings, smtp_starttls=True))
    assert smtp.verbs()[:2] == ["EHLO", "AUTH"]
    assert len(smtp.mails) == 1
