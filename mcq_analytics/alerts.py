"""Sends one message by the configured method. When an alert is due is decided elsewhere."""

from __future__ import annotations

import logging
import smtplib
import textwrap
from email.message import EmailMessage
from http import HTTPStatus
from http.client import HTTPException

from mcq_analytics.errors import McqError, UsageError
from mcq_analytics.settings import AlertSettings, load_settings

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 10
SUBJECT_WIDTH = 80


class AlertError(McqError):
    """The alert was not accepted. `retry_after` are the seconds that the other side asked for."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


def send_alert(message: str, settings: AlertSettings | None = None) -> None:
    """Send a message to Slack or by email, or log it, as configured (SPEC section 4).

    Returns once the other side has accepted it. No secret is part of an error.

    Raises:
        UsageError: the message is empty.
        AlertError: it was not accepted; one line that says why, and what to check.

    """
    if not message.strip():
        raise UsageError("the alert is empty: give it a message")
    chosen = settings or load_settings().alerts
    if chosen.method == "email":
        _send_email(message, chosen)
    elif chosen.method != "slack":
        logger.warning("%s", message)
    elif chosen.slack_webhook_url:
        _send_to_webhook(message, chosen.slack_webhook_url)
    else:
        _send_with_token(message, chosen)


def _send_to_webhook(message: str, url: str) -> None:
    from slack_sdk.webhook import WebhookClient  # noqa: PLC0415  (slow, and seldom needed)

    remedy = "check SLACK_WEBHOOK_URL"
    try:
        response = WebhookClient(url, timeout=TIMEOUT_SECONDS).send(text=message)
    except (OSError, HTTPException, ValueError) as error:
        # The error's text may hold the URL, which is a secret.
        raise AlertError(f"Slack was not reached ({type(error).__name__}): {remedy}") from None
    _require_accepted(response.status_code, response.headers.get("Retry-After"), remedy)


def _send_with_token(message: str, settings: AlertSettings) -> None:
    from dagster_slack import SlackResource  # noqa: PLC0415
    from slack_sdk.errors import SlackApiError, SlackClientError  # noqa: PLC0415

    remedy = "check SLACK_TOKEN and SLACK_CHANNEL"
    client = SlackResource(token=settings.slack_token or "").get_client()
    client.timeout = TIMEOUT_SECONDS
    if settings.slack_base_url:
        client.base_url = settings.slack_base_url.rstrip("/") + "/"
    try:
        client.chat_postMessage(channel=settings.slack_channel or "", text=message)
    except SlackApiError as error:
        status = error.response.status_code
        _require_accepted(status, error.response.headers.get("Retry-After"), remedy)
        reason = error.response.get("error", "no reason given")
        raise AlertError(f"Slack refused the alert ({reason}): {remedy}") from None
    except (SlackClientError, OSError, HTTPException, ValueError) as error:
        raise AlertError(f"Slack was not reached ({type(error).__name__}): {remedy}") from None


def _require_accepted(status: int, retry_after: str | None, remedy: str) -> None:
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        seconds = float(retry_after) if retry_after and retry_after.isdigit() else None
        wait = f"in {seconds:g} s" if seconds is not None else "later"
        raise AlertError(f"Slack takes no more alerts now (429): try again {wait}", seconds)
    if status != HTTPStatus.OK:
        raise AlertError(f"Slack refused the alert with HTTP status {status}: {remedy}")


def _send_email(message: str, settings: AlertSettings) -> None:
    mail = EmailMessage()
    mail["From"] = settings.email_from or ""
    mail["To"] = ", ".join(settings.email_to)
    first_line = message.strip().splitlines()[0]
    mail["Subject"] = f"mcq_analytics: {textwrap.shorten(first_line, SUBJECT_WIDTH)}"
    mail.set_content(message)
    where = f"{settings.smtp_host}:{settings.smtp_port}"
    try:
        with smtplib.SMTP(
            settings.smtp_host, settings.smtp_port, timeout=TIMEOUT_SECONDS
        ) as server:
            if settings.smtp_starttls:
                server.starttls()
            if settings.smtp_user:
                server.login(settings.smtp_user, settings.smtp_password or "")
            server.send_message(mail)
    except smtplib.SMTPResponseException as error:
        raise AlertError(
            f"the mail server {where} refused the alert ({error.smtp_code}): check SMTP_USER, "
            "SMTP_PASSWORD and ALERT_EMAIL_FROM"
        ) from None
    except smtplib.SMTPException as error:
        raise AlertError(
            f"the mail server {where} refused the alert ({type(error).__name__}): "
            "check ALERT_EMAIL_TO and SMTP_STARTTLS"
        ) from None
    except OSError as error:
        raise AlertError(
            f"the mail server {where} was not reached ({type(error).__name__}): "
            "check SMTP_HOST and SMTP_PORT"
        ) from None
