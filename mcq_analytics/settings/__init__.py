"""Settings: what the environment and `.env` say, read once and checked. No connection is made here.

`.env.example` lists every variable with its default.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from dotenv import dotenv_values
from sqlalchemy.engine import URL

from mcq_analytics.errors import McqError, UsageError
from mcq_analytics.masking import remember
from mcq_analytics.model.windows import parse_hour
from mcq_analytics.settings.database_urls import read_postgres_url
from mcq_analytics.settings.demo_start import noted_start

ENVIRONMENTS = ("dev", "test", "prod")
ALERT_METHODS = ("log", "slack", "email")
IMPLICIT_TLS_PORT = 465
"""Where mail servers speak TLS from the first octet on (RFC 8314)."""
LOGIN_WITHOUT_TLS = (
    "SMTP_USER is set, but neither SMTP_STARTTLS nor SMTP_SSL is: the password would be sent in "
    "the clear; set SMTP_STARTTLS=true, or SMTP_PORT=465 for implicit TLS (see .env.example)"
)

_SECRETS = (
    *("DB_DEV_PASSWORD", "DB_TEST_PASSWORD", "DB_PROD_PASSWORD", "MCQ_DAGSTER_PASSWORD"),
    *("PGPASSWORD", "SLACK_TOKEN", "SMTP_PASSWORD"),
)
_BOOLEANS = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}


@dataclass(frozen=True)
class AlertSettings:
    """Where alerts go. A secret is never part of a representation."""

    method: str = "log"
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
        """Whether the mail server's password would be sent in the clear, which nobody allowed."""
        encrypted = self.smtp_starttls or self.smtp_ssl
        return bool(self.smtp_user) and not encrypted and not self.smtp_allow_plaintext


@dataclass(frozen=True)
class SparkSettings:
    """The Spark cluster by name, and the size of one executor."""

    cluster: str = "local"
    master: str | None = None
    conf: Mapping[str, str] = field(default_factory=dict)
    executor_memory: str = "2g"
    executor_cores: int = 2
    driver_memory: str = "2g"


@dataclass(frozen=True)
class Settings:
    """All settings of one environment (SPEC section 4).

    `database_url` is None only in `dev`, where the embedded server takes its place.
    """

    env: str
    database_url: URL | None
    dagster_url: URL | None
    source_schema: str
    fact_schema: str
    partition_start: datetime
    home: Path
    alerts: AlertSettings
    spark: SparkSettings
    statement_seconds: int
    lock_seconds: int
    catch_up_hours: int
    lookback_hours: int
    audit_hours: int
    alert_after: int
    webserver_url: str
    docs_url: str | None
    automation: bool = True


def load_settings(
    env: str | None = None, directory: Path | None = None, *, to_connect_only: bool = False
) -> Settings:
    """Return the settings of `env` (default: `MCQ_ENV`, else `dev`).

    The process environment wins over `.env` in `directory` (default: the working directory).
    In `prod` the first hour and the address of the UI have no defaults, except for those who only
    connect.

    Raises:
        UsageError: an environment of another name.
        McqError: a variable that is missing or malformed; the message names it.

    """
    values = _environment(directory or Path.cwd())
    _remember_secrets(values)
    chosen = env if env is not None else values.get("MCQ_ENV", "dev")
    if chosen not in ENVIRONMENTS:
        raise UsageError(
            f"unknown environment {chosen!r}: set MCQ_ENV to one of {', '.join(ENVIRONMENTS)}"
        )
    spark = _spark_settings(values)
    database_url = _database_url(chosen, values)
    if chosen == "prod" and not to_connect_only:
        _require_what_production_has_no_default_for(values)
    return Settings(
        env=chosen,
        database_url=database_url,
        dagster_url=_postgres_url("MCQ_DAGSTER_URL", "MCQ_DAGSTER_PASSWORD", values),
        source_schema=values.get("MCQ_SOURCE_SCHEMA", "public"),
        fact_schema=values.get("MCQ_FACT_SCHEMA", "analytics"),
        partition_start=_partition_start(chosen, values),
        home=_home(values),
        alerts=_alert_settings(values),
        spark=spark,
        statement_seconds=_integer("MCQ_STATEMENT_TIMEOUT", values, 3_600),
        lock_seconds=_integer("MCQ_LOCK_TIMEOUT", values, 3_600, least=0),
        catch_up_hours=_integer("MCQ_CATCH_UP_HOURS", values, 1_000),
        lookback_hours=_integer("MCQ_LOOKBACK_HOURS", values, 72, least=0),
        audit_hours=_integer("MCQ_AUDIT_HOURS", values, 168, least=0),
        alert_after=_integer("MCQ_ALERT_AFTER", values, 2),
        webserver_url=values.get("MCQ_DAGSTER_WEBSERVER_URL", "http://127.0.0.1:3000").rstrip("/"),
        docs_url=values.get("MCQ_DOCS_URL"),
        automation=_is_automated(chosen, values),
    )


def _environment(directory: Path) -> dict[str, str]:
    """Merge `.env` with the process environment; empty values count as not set."""
    merged = {**dotenv_values(directory / ".env"), **os.environ}
    return {name: value for name, value in merged.items() if value}


def _remember_secrets(values: Mapping[str, str]) -> None:
    """Note what is a secret whatever else is set; a URL's passwords are noted as it is read."""
    remember(*(values.get(name) for name in _SECRETS))
    webhook = values.get("SLACK_WEBHOOK_URL", "")
    _, _, path = webhook.partition("://")[2].partition("/")
    remember(webhook, path, path.rpartition("/")[2])


def _require_what_production_has_no_default_for(values: Mapping[str, str]) -> None:
    """Ask for what only the owner knows: a wrong first hour computes years that have no answers."""
    for name, meaning in (
        ("MCQ_PARTITION_START", "the first hour to compute, as 2025-01-31T00:00"),
        ("MCQ_DAGSTER_WEBSERVER_URL", "the address of the UI, to which alerts link"),
    ):
        if name not in values:
            raise McqError(
                f"{name} is not set, and has no default where MCQ_ENV is prod: add {meaning}, to "
                ".env (see .env.example)"
            )


def _database_url(env: str, values: Mapping[str, str]) -> URL | None:
    name = f"DB_{env.upper()}_URL"
    url = _postgres_url(name, f"DB_{env.upper()}_PASSWORD", values)
    if url is None and env != "dev":
        raise McqError(f"{name} is not set; add it to .env (see .env.example)")
    return url


def _postgres_url(name: str, password_name: str, values: Mapping[str, str]) -> URL | None:
    """Read a URL; a password of its own setting goes before one in the URL."""
    text = values.get(name)
    if text is None:
        return None
    url = read_postgres_url(name, text)
    password = values.get(password_name)
    return url if password is None else url.set(password=password)


def _home(values: Mapping[str, str]) -> Path:
    return Path(values.get("MCQ_HOME", ".mcq")).expanduser().absolute()


def _is_automated(env: str, values: Mapping[str, str]) -> bool:
    """Return whether schedule and sensors run: not where a person looks at production.

    `dagster dev` sets DAGSTER_IS_DEV_CLI for all its processes.
    """
    looking = env == "prod" and "DAGSTER_IS_DEV_CLI" in values
    return _boolean("MCQ_AUTOMATION", values, default=not looking)


def _partition_start(env: str, values: Mapping[str, str]) -> datetime:
    given = values.get("MCQ_PARTITION_START")
    if given is None and env != "prod":
        given = noted_start(_home(values), _database_url(env, values))
    try:
        return parse_hour(given or "2024-01-01T00:00")
    except UsageError as error:
        raise McqError(f"MCQ_PARTITION_START: {error}") from None


def _alert_settings(values: Mapping[str, str]) -> AlertSettings:
    method = values.get("ALERT_METHOD", "log").lower()
    if method not in ALERT_METHODS:
        raise McqError(f"ALERT_METHOD is {method!r}; it must be one of {', '.join(ALERT_METHODS)}")
    port = _integer("SMTP_PORT", values, 25)
    settings = AlertSettings(
        method=method,
        slack_webhook_url=values.get("SLACK_WEBHOOK_URL"),
        slack_token=values.get("SLACK_TOKEN"),
        slack_channel=values.get("SLACK_CHANNEL"),
        slack_base_url=values.get("SLACK_BASE_URL"),
        email_from=values.get("ALERT_EMAIL_FROM"),
        email_to=tuple(
            part.strip() for part in values.get("ALERT_EMAIL_TO", "").split(",") if part.strip()
        ),
        smtp_host=values.get("SMTP_HOST", "localhost"),
        smtp_port=port,
        smtp_user=values.get("SMTP_USER"),
        smtp_password=values.get("SMTP_PASSWORD"),
        smtp_starttls=_boolean("SMTP_STARTTLS", values),
        smtp_ssl=_boolean("SMTP_SSL", values, port == IMPLICIT_TLS_PORT),
        smtp_allow_plaintext=_boolean("SMTP_ALLOW_PLAINTEXT", values),
    )
    if method == "slack" and not (
        settings.slack_webhook_url or (settings.slack_token and settings.slack_channel)
    ):
        raise McqError(
            "ALERT_METHOD is slack, but neither SLACK_WEBHOOK_URL nor SLACK_TOKEN with "
            "SLACK_CHANNEL is set; add one to .env (see .env.example)"
        )
    if method == "email" and not (settings.email_from and settings.email_to):
        raise McqError(
            "ALERT_METHOD is email, but ALERT_EMAIL_FROM or ALERT_EMAIL_TO is not set; "
            "add them to .env (see .env.example)"
        )
    # Where Slack accepts nothing, alerts go by email, if that is set as well.
    sends_mail = method != "log" and settings.email_from and settings.email_to
    if sends_mail and settings.would_log_in_without_tls:
        raise McqError(LOGIN_WITHOUT_TLS)
    return settings


def _spark_settings(values: Mapping[str, str]) -> SparkSettings:
    """Read the named cluster: `SPARK_<NAME>_MASTER`, and conf as `key=value;key=value`."""
    cluster = values.get("MCQ_SPARK_CLUSTER", "local")
    return cluster_settings(cluster, values)


def cluster_settings(cluster: str, values: Mapping[str, str] | None = None) -> SparkSettings:
    """Return the settings of the Spark cluster that is named `cluster`.

    `local` needs no settings; any other name needs `SPARK_<NAME>_MASTER` and may have
    `SPARK_<NAME>_CONF`, a list ``key=value;key=value``.

    Raises:
        McqError: the cluster has no master, or its conf cannot be read; the variable is named.

    """
    if values is None:
        values = _environment(Path.cwd())
    prefix = f"SPARK_{cluster.upper().replace('-', '_')}"
    master = values.get(f"{prefix}_MASTER")
    if master is None and cluster != "local":
        raise McqError(
            f"the Spark cluster {cluster!r} is not known: set {prefix}_MASTER to its master URL, "
            "or MCQ_SPARK_CLUSTER to local"
        )
    conf: dict[str, str] = {}
    for entry in values.get(f"{prefix}_CONF", "").split(";"):
        if not entry.strip():
            continue
        key, equals, value = entry.strip().partition("=")
        if not equals or not key.startswith("spark."):
            raise McqError(f"{prefix}_CONF: {key!r} is not of the form spark.key=value")
        conf[key] = value
    return SparkSettings(
        cluster=cluster,
        master=master,
        conf=conf,
        executor_memory=values.get("MCQ_SPARK_EXECUTOR_MEMORY", "2g"),
        executor_cores=_integer("MCQ_SPARK_EXECUTOR_CORES", values, 2),
        driver_memory=values.get("MCQ_SPARK_DRIVER_MEMORY", "2g"),
    )


def _integer(name: str, values: Mapping[str, str], default: int, least: int = 1) -> int:
    text = values.get(name)
    if text is None:
        return default
    try:
        number = int(text)
    except ValueError:
        raise McqError(f"{name} is {text!r}; it must be a whole number") from None
    if number < least:
        raise McqError(f"{name} is {number}; it must be at least {least}")
    return number


def _boolean(name: str, values: Mapping[str, str], default: bool = False) -> bool:
    text = values.get(name)
    if text is None:
        return default
    if text.strip().lower() not in _BOOLEANS:
        raise McqError(f"{name} is {text!r}; it must be true or false")
    return _BOOLEANS[text.strip().lower()]
