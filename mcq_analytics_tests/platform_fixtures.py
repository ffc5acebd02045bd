"""Fixtures of a `Platform`. A test module names this module in `pytest_plugins` to get them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime

import pytest
from dagster import (
    DagsterInstance,
)
from pyspark.sql import SparkSession
from sqlalchemy.engine import URL

from mcq_analytics.model.facts import IdType
from mcq_analytics.model.windows import HOUR, Window, last_closed_hour_end
from mcq_analytics.postgres.database import Database
from mcq_analytics_tests.conftest import (
    create_database,
    drop_database,
    made_databases,
)
from mcq_analytics_tests.facts_of import execute, run_facts
from mcq_analytics_tests.platforms import Platform


@pytest.fixture(scope="module")
def origin() -> datetime:
    """The first hour of the platforms: forty hours of activity end two hours ago."""
    return last_closed_hour_end() - 42 * HOUR


@pytest.fixture(scope="module")
def platform_template(
    server: URL, templates: Callable[[IdType], str], spark: SparkSession, origin: datetime
) -> Iterator[str]:
    """A database with forty hours of activity, all of them done.

    Each hour has an answer in a session of its own and, every fourth, a submission.
    """
    with made_databases(server, templates) as make:
        made = make()
        execute(
            made,
            "INSERT INTO questions SELECT q, 'A' FROM generate_series(1, 3) q",
            f"INSERT INTO sessions SELECT n, timestamptz '{origin}' + n * interval '1 hour' "
            "+ interval '50 min' FROM generate_series(0, 39) n",
            "INSERT INTO answers SELECT n, 1 + n % 5, 1 + n % 3, 7, n, 'A', "
            f"timestamptz '{origin}' + n * interval '1 hour' + interval '20 min' "
            "FROM generate_series(0, 39) n",
            "INSERT INTO submissions SELECT 1 + n % 5, 7, "
            f"timestamptz '{origin}' + n * interval '1 hour' + interval '30 min', 'completed' "
            "FROM generate_series(0, 39, 4) n",
        )
        run_facts(made, spark, Window(origin, origin + 40 * HOUR))
        yield str(made.url.database)


@pytest.fixture
def platform(
    server: URL,
    platform_template: str,
    origin: datetime,
    instance: DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Platform]:
    """A platform whose forty hours are done."""
    url = create_database(server, "platform", platform_template)
    monkeypatch.setenv("DB_DEV_URL", url.render_as_string(hide_password=False))
    monkeypatch.setenv("MCQ_PARTITION_START", origin.isoformat())
    yield Platform(Database(url, "public", "analytics"), instance, origin)
    drop_database(url)
