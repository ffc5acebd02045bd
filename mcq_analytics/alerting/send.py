"""Sends one message to the log, Slack or email. `incidents` decides when to send what."""

from __future__ import annotations

import contextlib
import html
import logging
import math
import re
import smtplib
import ssl
from collections.abc import Mapping
from email.message import EmailMessage
from http import HTTPStatus
from http.client import HTTPException

from mcq_analytics.errors import McqError, UsageError
from mcq_analytics.masking import mask
from mcq_analytics.settings.alerts import LOGIN_WITHOUT_TLS, AlertSettings

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 10
SUBJECT_WIDTH = 80

# Raised through slack_sdk by malformed URLs, failed connections and unexpected answers (an unknown
# charset, or JSON that is not an object).
TRANSPORT_ERRORS = (OSError, HTTPException, ValueError, LookupError, AttributeError)


class AlertError(McqError):
    """The alert was not accepted. The message has the reason, and what to check.

    `retry_after` is the number of seconds that Slack wants us to wait, if it gave one.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


def send_alert(message: str, settings: AlertSettings) -> None:
    """Send a message by the method of the settings. `api.send_alert` is the public function.

    Returns once the message was accepted. It is sent once: retries are up to the caller. Neither
    errors nor log lines contain a secret.

    >>> send_alert("the disk is nearly full", AlertSettings(method="log"))

    Raises:
        UsageError: the message is empty.
        AlertError: the message was not accepted; one line with the reason and what to check.

    """
    if not message.strip():
        raise UsageError("the alert is empty: give it a message")
    message = mask(message)
    if settings.method == "log":
        logger.warning("%s", message)
    elif settings.method == "email":
        _send_email(message, settings)
    elif settings.slack_webhook_url:
        _send_to_webhook(message, settings.slack_webhook_url)
    else:
        _send_with_token(message, settings)


def _send_to_webhook(message: str, url: str) -> None:
    from slack_sdk.errors import SlackClientError  # noqa: PLC0415  (slow, and seldom needed)
    from slack_sdk.webhook import WebhookClient  # noqa: PLC0415

    remedy = "check SLACK_WEBHOOK_URL"
    # The client's logger would log the URL, which is a secret. Its retries are off: after a lost
    # connection they would post the alert twice.
    silent = logging.Logger("silent", level=logging.CRITICAL + 1)
    client = WebhookClient(url, timeout=TIMEOUT_SECONDS, logger=silent, retry_handlers=[])
    try:
        response = client.send(text=_slack_text(message))
    except (SlackClientError, *TRANSPORT_ERRORS) as error:
        raise _not_reached(error, remedy) from None
    _require_accepted(response.status_code, response.headers, response.body, remedy)
    # A mistyped URL may redirect to a web page, with status 200.
    if response.body.lstrip().startswith("<"):
        raise AlertError(f"the webhook answered with a web page, not like Slack: {remedy}")


def _send_with_token(message: str, settings: AlertSettings) -> None:
    from dagster_slack import SlackResource  # noqa: PLC0415
    from slack_sdk.errors import SlackApiError, SlackClientError  # noqa: PLC0415

    remedy = "check SLACK_TOKEN and SLACK_CHANNEL"
    token = settings.slack_token or ""
    # Python refuses such a header with an error that shows the token, and the client logs it.
    if not re.fullmatch(r"[!-~]+", token):
        raise AlertError("SLACK_TOKEN is empty or has a space or special character: correct it")
    client = SlackResource(token=token).get_client()
    client.timeout = TIMEOUT_SECONDS
    client.retry_handlers = []
    if settings.slack_base_url:
        client.base_url = settings.slack_base_url.rstrip("/") + "/"
        remedy = "check SLACK_TOKEN, SLACK_CHANNEL and SLACK_BASE_URL"

    def without_token(record: logging.LogRecord) -> bool:
        return token not in record.getMessage()

    # The client logs the answer, which may repeat the request's headers.
    client.logger.addFilter(without_token)
    try:
        client.chat_postMessage(channel=settings.slack_channel or "", text=_slack_text(message))
    except SlackApiError as error:
        answer = error.response
        reason = str(answer.data.get("error", "")) if isinstance(answer.data, dict) else ""
        _require_accepted(answer.status_code, answer.headers, reason, remedy)
        raise AlertError(f"Slack refused the alert{_in_brackets(reason)}: {remedy}") from None
    except (SlackClientError, *TRANSPORT_ERRORS) as error:
        raise _not_reached(error, remedy) from None
    finally:
        client.logger.removeFilter(without_token)


def _slack_text(message: str) -> str:
    """Escape ``&``, ``<`` and ``>``, which Slack would read as links or mentions."""
    return html.escape(message, quote=False)


def _require_accepted(status: int, headers: Mapping[str, str], reason: str, remedy: str) -> None:
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        seconds = _seconds(headers.get("Retry-After"))
        wait = "later" if seconds is None else f"in {seconds:g} s (Retry-After)"
        raise AlertError(
            f"Slack accepts no more alerts for now (HTTP 429): try again {wait}", seconds
        ) from None
    if status != HTTPStatus.OK:
        raise AlertError(
            f"Slack refused the alert with HTTP {status}{_in_brackets(reason)}: {remedy}"
        ) from None


def _seconds(retry_after: str | None) -> float | None:
    try:
        seconds = float(retry_after or "")
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _in_brackets(reason: str) -> str:
    """Return one of Slack's codes, such as ``channel_not_found``, in brackets; else nothing.

    Any other text may be a whole page, or repeat the request.
    """
    code = reason.strip()
    return f" ({code})" if re.fullmatch(r"[a-z_]{1,60}", code) else ""


def _not_reached(error: Exception, remedy: str) -> AlertError:
    """Return an error for a failed connection, without the text, which may contain a secret."""
    cause = getattr(error, "reason", error)
    if isinstance(cause, TimeoutError):
        return AlertError(f"Slack did not answer within {TIMEOUT_SECONDS:g} s: {remedy}")
    kind = type(cause if isinstance(cause, Exception) else error).__name__
    return AlertError(f"Slack was not reached ({kind}): {remedy}")


def _send_email(message: str, settings: AlertSettings) -> None:
    where = f"the mail server {settings.smtp_host}:{settings.smtp_port}"
    try:
        refused = _deliver(_mail(message, settings), settings)
    except smtplib.SMTPRecipientsRefused as error:
        codes = ", ".join(str(code) for code in sorted({code for code, _ in _answers(error)}))
        raise AlertError(
            f"{where} refused every recipient ({codes}): check ALERT_EMAIL_TO"
        ) from None
    except smtplib.SMTPSenderRefused as error:
        raise AlertError(
            f"{where} refused the sender ({error.smtp_code}): check ALERT_EMAIL_FROM"
        ) from None
    except smtplib.SMTPAuthenticationError as error:
        raise AlertError(
            f"{where} refused the login ({error.smtp_code}): check SMTP_USER and SMTP_PASSWORD"
        ) from None
    except smtplib.SMTPResponseException as error:
        raise AlertError(
            f"{where} refused the alert ({error.smtp_code}): check SMTP_HOST, SMTP_USER and "
            "ALERT_EMAIL_FROM"
        ) from None
    except smtplib.SMTPNotSupportedError:
        raise AlertError(
            f"{where} does not offer STARTTLS or login: check SMTP_STARTTLS and SMTP_USER"
        ) from None
    except ssl.SSLError as error:
        raise AlertError(
            f"the TLS connection to {where} is not trusted ({type(error).__name__}): check "
            "SMTP_HOST, SMTP_PORT, its certificate, SMTP_STARTTLS and SMTP_SSL"
        ) from None
    except (OSError, smtplib.SMTPException) as error:
        raise AlertError(
            f"{where} was not reached, or hung up ({type(error).__name__}): check SMTP_HOST "
            "and SMTP_PORT"
        ) from None
    except ValueError:
        raise AlertError(
            "the alert cannot be written as an email: check ALERT_EMAIL_FROM, ALERT_EMAIL_TO, "
            "SMTP_USER and SMTP_PASSWORD for special characters"
        ) from None
    if refused:
        # The others got the mail: after an error the caller would send it to them again.
        logger.warning("%s refused %s: check ALERT_EMAIL_TO", where, ", ".join(sorted(refused)))


def _mail(message: str, settings: AlertSettings) -> EmailMessage:
    mail = EmailMessage()
    mail["From"] = settings.email_from or ""
    mail["To"] = ", ".join(settings.email_to)
    subject = " ".join(message.strip().splitlines()[0].split())
    if len(subject) > SUBJECT_WIDTH:
        subject = subject[: SUBJECT_WIDTH - 3].rstrip() + "..."
    mail["Subject"] = f"mcq_analytics: {subject}"
    mail.set_content(message)
    return mail


def _deliver(mail: EmailMessage, settings: AlertSettings) -> set[str]:
    """Send a mail; return the refused recipients, if others were accepted."""
    server = _connected(settings)
    try:
        if settings.smtp_user:
            server.login(settings.smtp_user, settings.smtp_password or "")
        refused = server.send_message(mail)
        # The mail is accepted by now, however the server ends the connection.
        with contextlib.suppress(OSError, smtplib.SMTPException):
            server.quit()
    finally:
        server.close()
    return set(refused)


def _connected(settings: AlertSettings) -> smtplib.SMTP:
    """Connect to the mail server, with TLS if it is configured.

    Without a context smtplib accepts any certificate, and would send the password there.
    """
    if settings.would_log_in_without_tls:
        raise AlertError(LOGIN_WITHOUT_TLS)
    host, port = settings.smtp_host, settings.smtp_port
    if settings.smtp_ssl:
        trusted = ssl.create_default_context()
        return smtplib.SMTP_SSL(host, port, timeout=TIMEOUT_SECONDS, context=trusted)
    server = smtplib.SMTP(host, port, timeout=TIMEOUT_SECONDS)
    if settings.smtp_starttls:
        try:
            server.starttls(context=ssl.create_default_context())
        except BaseException:
            server.close()
            raise
    return server


def _answers(error: smtplib.SMTPRecipientsRefused) -> list[tuple[int, bytes]]:
    return list(error.recipients.values())
