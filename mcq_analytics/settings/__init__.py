"""The settings of a process: read once where it begins, checked, and handed down.

Nothing here connects anywhere. `.env.example` lists every variable with its default.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy.engine import URL

from mcq_analytics.errors import McqError, UsageError
from mcq_analytics.model.windows import parse_hour
from mcq_analytics.settings.alerts import AlertSettings, alert_settings
from mcq_analytics.settings.database_urls import read_postgres_url
from mcq_analytics.settings.demo_start import noted_start
from mcq_analytics.settings.spark import SparkSettings, cluster_settings
from mcq_analytics.settings.variables import Variables, read_variables

__all__ = ["AlertSettings", "Settings", "SparkSettings", "load_settings"]

ENVIRONMENTS = ("dev", "test", "prod")


@dataclass(frozen=True)
class Settings:
    """All settings of one environment (docs/spec.md §4).

    `database_url` is None only in `dev`, which then uses the embedded server. `read_url` is that of
    a replica of it, if runs read the base tables there.
    """

    env: str
    database_url: URL | None
    read_url: URL | None
    dagster_url: URL | None
    source_schema: str
    fact_schema: str
    partition_start: datetime
    home: Path
    alerts: AlertSettings
    spark: SparkSettings
    statement_seconds: int
    lock_seconds: int
    replica_seconds: int
    catch_up_hours: int
    lookback_hours: int
    audit_hours: int
    driver_rows: int
    alert_after: int
    webserver_url: str
    docs_url: str | None
    automation: bool = True


def load_settings(env: str | None = None, *, to_connect_only: bool = False) -> Settings:
    """Return the settings of `env` (default: `MCQ_ENV`, else `dev`).

    The process environment wins over `.env` in the working directory. In `prod` the first hour and
    the address of the UI have no defaults; `to_connect_only` does without them.

    Raises:
        UsageError: an unknown environment.
        McqError: a variable is missing or malformed; the message names it.

    """
    variables = read_variables()
    chosen = variables.MCQ_ENV if env is None else env
    if chosen not in ENVIRONMENTS:
        raise UsageError(
            f"unknown environment {chosen!r}: set MCQ_ENV to one of {', '.join(ENVIRONMENTS)}"
        )
    spark = cluster_settings(variables.MCQ_SPARK_CLUSTER, variables)
    database_url = _database_url(chosen, variables)
    if chosen == "prod" and not to_connect_only:
        _check_production(variables)
    webserver_url = variables.MCQ_DAGSTER_WEBSERVER_URL or "http://127.0.0.1:3000"
    return Settings(
        env=chosen,
        database_url=database_url,
        read_url=_read_url(chosen, variables, database_url),
        dagster_url=_postgres_url("MCQ_DAGSTER", variables),
        source_schema=variables.MCQ_SOURCE_SCHEMA,
        fact_schema=variables.MCQ_FACT_SCHEMA,
        partition_start=_partition_start(chosen, variables, database_url),
        home=variables.home,
        alerts=alert_settings(variables),
        spark=spark,
        statement_seconds=variables.MCQ_STATEMENT_TIMEOUT,
        lock_seconds=variables.MCQ_LOCK_TIMEOUT,
        replica_seconds=variables.MCQ_REPLICA_TIMEOUT,
        catch_up_hours=variables.MCQ_CATCH_UP_HOURS,
        lookback_hours=variables.MCQ_LOOKBACK_HOURS,
        audit_hours=variables.MCQ_AUDIT_HOURS,
        driver_rows=variables.MCQ_DRIVER_ROWS,
        alert_after=variables.MCQ_ALERT_AFTER,
        webserver_url=webserver_url.rstrip("/"),
        docs_url=variables.MCQ_DOCS_URL,
        automation=_is_automated(chosen, variables),
    )


def _check_production(variables: Variables) -> None:
    """Require settings that only the owner knows.

    With a wrong first hour, years without any answer would be computed.
    """
    for name, value, meaning in (
        (
            "MCQ_PARTITION_START",
            variables.MCQ_PARTITION_START,
            "the first hour to compute, for example 2025-01-31T00:00",
        ),
        (
            "MCQ_DAGSTER_WEBSERVER_URL",
            variables.MCQ_DAGSTER_WEBSERVER_URL,
            "the address of the UI, for links in alerts",
        ),
    ):
        if value is None:
            raise McqError(
                f"{name} is not set, and has no default if MCQ_ENV is prod: add {meaning}, to "
                ".env (see .env.example)"
            )


def _database_url(env: str, variables: Variables) -> URL | None:
    url = _postgres_url(f"DB_{env.upper()}", variables)
    if url is None and env != "dev":
        raise McqError(f"DB_{env.upper()}_URL is not set; add it to .env (see .env.example)")
    return url


def _read_url(env: str, variables: Variables, database_url: URL | None) -> URL | None:
    """Read the URL of the replica; without a password it has that of the database."""
    name = f"DB_{env.upper()}"
    url = _postgres_url(f"{name}_READ", variables)
    if url is None:
        return None
    if database_url is None:
        raise McqError(f"{name}_READ_URL names a replica of no database: set {name}_URL too")
    return url if url.password is not None else url.set(password=database_url.password)


def _postgres_url(name: str, variables: Variables) -> URL | None:
    """Read `<name>_URL`; the password in `<name>_PASSWORD` wins over one in the URL."""
    text = variables.secret(f"{name}_URL")
    if text is None:
        return None
    url = read_postgres_url(f"{name}_URL", text)
    password = variables.secret(f"{name}_PASSWORD")
    return url if password is None else url.set(password=password)


def _is_automated(env: str, variables: Variables) -> bool:
    """Return whether schedule and sensors run.

    By default they do, except under `dagster dev` with production's settings: somebody is only
    looking at production then, and the deployed daemon does the work.
    """
    if variables.MCQ_AUTOMATION is not None:
        return variables.MCQ_AUTOMATION
    return env != "prod" or variables.DAGSTER_IS_DEV_CLI is None


def _partition_start(env: str, variables: Variables, database_url: URL | None) -> datetime:
    given = variables.MCQ_PARTITION_START
    if given is None and env != "prod":
        given = noted_start(variables.home, database_url)
    try:
        return parse_hour(given or "2024-01-01T00:00")
    except UsageError as error:
        raise McqError(f"MCQ_PARTITION_START: {error}") from None
