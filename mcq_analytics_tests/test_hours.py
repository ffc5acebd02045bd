"""The hours of facts from SQL: equal to attempts laid over each other in Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import MetaData, insert
from sqlalchemy.engine import URL

from mcq_analytics.model.facts import FACTS, IdType
from mcq_analytics.model.windows import HOUR, Window
from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.fact_tables import CANCELLED, FAILED, SUCCESS, etl_metadata_table
from mcq_analytics.postgres.hours import FactHours, hours_of_facts
from mcq_analytics.postgres.metadata import PastAttempt
from mcq_analytics.settings import load_settings
from mcq_analytics_tests.conftest import made_databases
from mcq_analytics_tests.facts_of import execute
from mcq_analytics_tests.overlay import START, ended, overlay

HOURS = 12
SPAN = Window(START + 2 * HOUR, START + (HOURS + 2) * HOUR)
FACT, OTHER = FACTS[0].name, FACTS[1].name

attempts = st.builds(
    lambda first, length, status: ended(first, first + length, status),
    st.integers(0, HOURS - 1),
    st.integers(1, 6),
    st.sampled_from([SUCCESS, SUCCESS, FAILED, FAILED, CANCELLED]),
)


@pytest.fixture(scope="module")
def store(server: URL, templates: Callable[[IdType], str]) -> Iterator[Database]:
    """A database; each example replaces its attempts."""
    with made_databases(server, templates) as make:
        yield make()


def stored(database: Database, of_fact: dict[str, list[PastAttempt]]) -> dict[str, FactHours]:
    """Replace the attempts of the last example, and return the hours of their facts."""
    table = etl_metadata_table(MetaData(schema="analytics"))
    with database.engine().begin() as connection:
        connection.exec_driver_sql("TRUNCATE analytics.etl_metadata")
        for fact, some in of_fact.items():
            for one in some:
                connection.execute(
                    insert(table).values(
                        pipeline_name=fact,
                        window_start=one.window.start,
                        window_end=one.window.end,
                        status=one.status,
                        started_at=one.started_at,
                        finished_at=one.finished_at,
                        run_id=one.run_id,
                        error=one.error,
                    )
                )
    return hours_of_facts(database.engine(), load_settings("dev"), of_fact)


@settings(max_examples=150)
@given(st.lists(attempts, max_size=14), st.lists(attempts, max_size=3), st.sets(st.integers(0, 20)))
def test_sql_gives_the_same_hours_as_attempts_laid_over_each_other_in_python(
    store: Database, some: list[PastAttempt], others: list[PastAttempt], numbers: set[int]
) -> None:
    found = stored(store, {FACT: some, OTHER: others})
    expected = overlay(some)
    assert found == {FACT: expected, OTHER: overlay(others)}
    # The answers of FactHours, computed hour by hour.
    by_hour = {hour: one for one in expected.ranges for hour in one.hours.starts()}
    hours = found[FACT]
    assert hours.open_hours(SPAN) == {
        hour for hour in SPAN.starts() if hour not in by_hour or by_hour[hour].is_open
    }
    asked: set[datetime] = {START + number * HOUR for number in numbers}
    assert hours.done(asked) == {hour for hour in asked & by_hour.keys() if by_hour[hour].is_done}
    assert hours.cancelled(asked) == {
        hour for hour in asked & by_hour.keys() if by_hour[hour].is_cancelled
    }
    failed = {hour: one.failed.window for hour, one in by_hour.items() if one.failed is not None}
    assert hours.failed_windows() == (failed if expected.failed_in_a_row < 3 else {})
    first = SPAN.start
    while first in by_hour and by_hour[first].has_succeeded:
        first += HOUR
    assert hours.succeeded_until(SPAN.start) == first
    assert hours.statuses() == {
        hour: SUCCESS if one.has_succeeded else FAILED
        for hour, one in by_hour.items()
        if one.has_succeeded or one.failed is not None
    }


def test_years_of_history_are_read_as_a_few_ranges(store: Database) -> None:
    execute(
        store,
        "TRUNCATE analytics.etl_metadata",
        "INSERT INTO analytics.etl_metadata (pipeline_name, window_start, window_end, status, "
        "started_at, finished_at, error) SELECT "
        f"'{FACT}', timestamptz '{START}' + n * interval '1 h', "
        f"timestamptz '{START}' + (n + 1) * interval '1 h', "
        "CASE WHEN n = 20000 THEN 'failed' ELSE 'success' END, now(), now(), NULL "
        "FROM generate_series(0, 26000) n",
    )
    hours = hours_of_facts(store.engine(), load_settings("dev"), [FACT])[FACT]
    assert [one.hours.hours for one in hours.ranges] == [20_000, 1, 6_000]
    span = Window(START, START + 26_002 * HOUR)
    assert hours.open_hours(span) == {START + 20_000 * HOUR, START + 26_001 * HOUR}
