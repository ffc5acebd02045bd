"""Queries that run beside an attempt, in its snapshot."""

from __future__ import annotations

from time import monotonic

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import DataError, OperationalError

from mcq_analytics.compute.background import InBackground
from mcq_analytics.postgres.base_snapshot import base_snapshot
from mcq_analytics.postgres.database import Database
from mcq_analytics_tests.attempts_at_nine import add_nine
from mcq_analytics_tests.facts_of import execute, scalar
from mcq_analytics_tests.servers import wait_until

SLEEPERS = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)'"


def test_a_query_in_the_background_reads_the_snapshot(database: Database) -> None:
    add_nine(database)

    def answers(connection: Connection) -> int:
        count: int = connection.execute(text("SELECT count(*) FROM answers")).scalar_one()
        return count

    engine = database.engine()
    with base_snapshot(engine, "public") as snapshot:
        execute(database, "DELETE FROM answers")
        assert InBackground(engine, snapshot.identifier, answers).result() == 1


def test_an_error_in_the_background_is_raised_where_the_result_is_asked_for(
    database: Database,
) -> None:
    engine = database.engine()
    with base_snapshot(engine, "public") as snapshot:
        query = InBackground(
            engine, snapshot.identifier, lambda connection: connection.execute(text("SELECT 1 / 0"))
        )
        with pytest.raises(DataError, match="division by zero"):
            query.result()
        query.stop()


def test_a_query_in_the_background_is_stopped_at_once(database: Database) -> None:
    engine = database.engine()
    with base_snapshot(engine, "public") as snapshot:
        query = InBackground(
            engine,
            snapshot.identifier,
            lambda connection: connection.execute(text("SELECT pg_sleep(600)")),
        )
        wait_until(lambda: scalar(database, SLEEPERS) == 1)
        began = monotonic()
        query.stop()
        assert monotonic() - began < 30
        assert scalar(database, SLEEPERS) == 0
        with pytest.raises(OperationalError, match="canceling statement"):
            query.result()
