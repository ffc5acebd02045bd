"""Settings of alerts: the method, and the Slack channel or mail server to send to."""

from __future__ import annotations

from dataclasses import dataclass, field

from mcq_analytics.errors import McqError
from mcq_analytics.settings.variables import Method, Variables

IMPLICIT_TLS_PORT = 465
"""The port on which mail servers expect TLS from the start (RFC 8314)."""
LOGIN_WITHOUT_TLS = (
    "SMTP_USER is set, but neither SMTP_STARTTLS nor SMTP_SSL is: the password would be sent in "
    "the clear; set SMTP_STARTTLS=true, or SMTP_PORT=465 for implicit TLS (see .env.example)"
)


@dataclass(frozen=True)
class AlertSettings:
    """Where alerts go. No secret is part of the representation."""

    method: Method = "log"
    slack_webhook_url: str | None = field(default=None, repr=False)
    slack_token: str | None = field(default=None, repr=False)
    slack_channel: str | None = None
    slack_base_url: str | None = None
    email_from: str | None = None
    email_to: tuple[str, ...] = ()
    smtp_host: str = "localhost"
    smtp_port: int = 25
    smtp_user: str | None = None
    smtp_password: str | None = field(default=None, repr=False)
    smtp_starttls: bool = False
    smtp_ssl: bool = False
    smtp_allow_plaintext: bool = False

    @property
    def would_log_in_without_tls(self) -> bool:
        """Whether the mail server's password would be sent in the clear without permission."""
        encrypted = self.smtp_starttls or self.smtp_ssl
        return bool(self.smtp_user) and not encrypted and not self.smtp_allow_plaintext


def alert_settings(variables: Variables) -> AlertSettings:
    """Return where alerts go.

    Raises:
        McqError: the chosen method lacks a variable, or a password would be sent in the clear.

    """
    port, ssl = variables.SMTP_PORT, variables.SMTP_SSL
    recipients = (part.strip() for part in variables.ALERT_EMAIL_TO.split(","))
    settings = AlertSettings(
        method=variables.ALERT_METHOD,
        slack_webhook_url=variables.secret("SLACK_WEBHOOK_URL"),
        slack_token=variables.secret("SLACK_TOKEN"),
        slack_channel=variables.SLACK_CHANNEL,
        slack_base_url=variables.SLACK_BASE_URL,
        email_from=variables.ALERT_EMAIL_FROM,
        email_to=tuple(filter(None, recipients)),
        smtp_host=variables.SMTP_HOST,
        smtp_port=port,
        smtp_user=variables.SMTP_USER,
        smtp_password=variables.secret("SMTP_PASSWORD"),
        smtp_starttls=variables.SMTP_STARTTLS,
        smtp_ssl=port == IMPLICIT_TLS_PORT if ssl is None else ssl,
        smtp_allow_plaintext=variables.SMTP_ALLOW_PLAINTEXT,
    )
    has_slack = settings.slack_webhook_url or (settings.slack_token and settings.slack_channel)
    has_email = settings.email_from and settings.email_to
    if settings.method == "slack" and not has_slack:
        raise McqError(
            "ALERT_METHOD is slack, but neither SLACK_WEBHOOK_URL nor SLACK_TOKEN with "
            "SLACK_CHANNEL is set; add one to .env (see .env.example)"
        )
    if settings.method == "email" and not has_email:
        raise McqError(
            "ALERT_METHOD is email, but ALERT_EMAIL_FROM or ALERT_EMAIL_TO is not set; "
            "add them to .env (see .env.example)"
        )
    # With Slack, email is the fallback if it is configured.
    if settings.method != "log" and has_email and settings.would_log_in_without_tls:
        raise McqError(LOGIN_WITHOUT_TLS)
    return settings
