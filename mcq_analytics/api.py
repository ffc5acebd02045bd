"""The public functions (docs/spec.md §4): each reads the settings and calls an internal function.

Our own code calls the internal functions and hands settings down to them.
"""

from __future__ import annotations

import logging
from datetime import datetime

from pyspark.sql import SparkSession
from sqlalchemy.engine import Engine

from mcq_analytics.alerting import send
from mcq_analytics.alerting.send import AlertError
from mcq_analytics.postgres.database import open_database
from mcq_analytics.postgres.fact_tables import FAILED
from mcq_analytics.postgres.metadata import PastAttempt, latest_attempts, next_window
from mcq_analytics.settings import Settings, load_settings
from mcq_analytics.settings.spark import cluster_settings
from mcq_analytics.settings.variables import read_variables
from mcq_analytics.spark.session import spark_session

logger = logging.getLogger(__name__)


def get_engine(env: str) -> Engine:
    """Return an engine on the database of `env`: `dev`, `test` or `prod`.

    It connects on first use. In `dev` without `DB_DEV_URL` the embedded server is started now.

    >>> with get_engine("prod").connect() as connection:
    ...     connection.execute(text("SELECT count(*) FROM analytics.test_summary_fact"))

    Raises:
        UsageError: an unknown environment.
        McqError: its URL is missing or malformed.

    """
    return open_database(load_settings(env, to_connect_only=True)).engine()


def send_alert(message: str) -> None:
    """Send a message to Slack or by email, or log it, depending on `ALERT_METHOD`.

    Returns once the message was accepted. It is sent once; retries are up to the caller.

    >>> send_alert("the nightly export of the facts failed")

    Raises:
        UsageError: the message is empty.
        AlertError: the message was not accepted; one line with the reason and the remedy.

    """
    send.send_alert(message, load_settings().alerts)


def get_last_successful_runs(
    engine: Engine, pipeline_name: str, limit: int = 2
) -> list[PastAttempt]:
    """Return the latest attempts of a fact, newest first. Despite the name: of any status.

    >>> get_last_successful_runs(get_engine("prod"), "test_summary_fact")[0].status
    'success'

    Raises:
        UsageError: `limit` is less than 1.

    """
    return latest_attempts(engine, pipeline_name, load_settings(), limit)


def get_time_range(
    engine: Engine,
    pipeline_name: str,
    start_override: datetime | str | None = None,
    end_override: datetime | str | None = None,
) -> tuple[datetime, datetime]:
    """Return the window to compute next for a fact, and alert if its last two attempts failed.

    Overrides win. Otherwise the window reaches from the first hour that has not succeeded to the
    end of the last closed hour; start and end are equal if there is nothing to do. No command of
    ours calls this: they leave alerts to the alert sensor.

    >>> start, end = get_time_range(get_engine("prod"), "test_summary_fact")

    Raises:
        UsageError: an override is off the hour or in the future, or the end is before the start.

    """
    settings = load_settings()
    window = next_window(engine, [pipeline_name], settings, start_override, end_override)
    _alert_after_two_failures(engine, pipeline_name, settings)
    return window


def initialize_spark_session_with_scaling(cluster_name: str, record_count: int) -> SparkSession:
    """Return a Spark session on the named cluster, sized for `record_count` records.

    `local` is Spark on this machine: on the server of `MCQ_HOME` if one is up, else in this
    process. For any other name, `SPARK_<NAME>_MASTER` and `SPARK_<NAME>_CONF` give the cluster; a
    master ``sc://host:port`` is a Spark Connect server, which needs `SPARK_<NAME>_TOKEN`.

    >>> spark = initialize_spark_session_with_scaling("local", 2_000_000)

    Raises:
        McqError: the cluster is unknown, its server does not answer, there is no Java 17 or newer,
            or Spark does not start.

    """
    variables = read_variables()
    cluster = cluster_settings(cluster_name, variables)
    return spark_session(cluster, variables.home, record_count)


def _alert_after_two_failures(engine: Engine, pipeline_name: str, settings: Settings) -> None:
    latest = latest_attempts(engine, pipeline_name, settings, limit=2)
    if len(latest) < 2 or any(attempt.status != FAILED for attempt in latest):
        return
    message = (
        f"{pipeline_name}: the last two runs failed, over {latest[1].window} and "
        f"{latest[0].window}: {latest[0].error}"
    )
    try:
        send.send_alert(message, settings.alerts)
    except AlertError as error:
        logger.warning("the alert was not sent: %s", error)
