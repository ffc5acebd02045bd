"""The lock of the facts: attempts wait for each other, name the holder, and give up in time."""

from __future__ import annotations

import dataclasses
import logging
import re
import threading
from collections.abc import Iterator

import pytest
from pyspark.sql import SparkSession
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from mcq_analytics.compute.attempt import Attempt
from mcq_analytics.compute.lock import lock_holder, lock_key
from mcq_analytics.errors import McqError
from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.errors import explain
from mcq_analytics.transforms.student_tests import student_tests
from mcq_analytics_tests.attempts_at_nine import NINE, add_nine
from mcq_analytics_tests.conftest import WORKER
from mcq_analytics_tests.facts_of import execute, run_facts, scalar


@pytest.fixture
def answered(database: Database) -> Database:
    """A database with an answer and a submission at nine."""
    add_nine(database)
    return database


def test_a_second_attempt_waits_for_the_first_and_names_it(
    answered: Database, spark: SparkSession, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    done = threading.Event()
    with Attempt(answered, NINE, "first-run") as first:

        def second() -> None:
            run_facts(answered, spark, NINE, run_id="second-run")
            done.set()

        thread = threading.Thread(target=second)
        thread.start()
        assert not done.wait(1.5)
        execute(answered, "INSERT INTO submissions VALUES (8, 5, '2024-01-01 09:30Z', 'timeout')")
        first.commit(student_tests(**first.inputs(spark)), student_tests)
    thread.join(60)
    assert done.is_set()
    assert "waiting for mcq_analytics first-ru" in caplog.text
    assert scalar(answered, "SELECT total_submissions FROM analytics.test_funnel_fact") == 2


@pytest.mark.parametrize("patience", [0, 1])
def test_an_attempt_waits_no_longer_than_the_lock_timeout(
    answered: Database, patience: int
) -> None:
    hasty = dataclasses.replace(answered, lock_seconds=patience)
    with Attempt(answered, NINE, "first-run"):
        with (
            pytest.raises(
                McqError,
                match=f"waited {patience} s for mcq_analytics first-ru .*raise --lock-timeout",
            ),
            Attempt(hasty, NINE, "second-run"),
        ):
            pass
        # It has tried nothing, so the hours keep their status.
        assert scalar(answered, "SELECT count(*) FROM analytics.etl_metadata") == 0


def test_every_session_has_timeouts(answered: Database) -> None:
    hasty = dataclasses.replace(answered, statement_seconds=1)
    with hasty.engine().connect() as connection:
        shown = connection.execute(
            text(
                "SELECT name, setting FROM pg_settings WHERE name ~ '^(statement|lock|idle_session|"
                "idle_in_transaction_session)_timeout$'"
            )
        )
        assert dict(shown.tuples().all()) == {
            "statement_timeout": "1000",
            "lock_timeout": "60000",
            "idle_session_timeout": "1000",
            "idle_in_transaction_session_timeout": "1000",
        }
        with pytest.raises(DBAPIError, match="statement timeout") as failure:
            connection.execute(text("SELECT pg_sleep(30)"))
    assert "raise MCQ_STATEMENT_TIMEOUT" in str(explain(failure.value, "the run"))


def test_the_facts_of_each_schema_have_one_lock(database: Database) -> None:
    assert lock_key("analytics") == lock_key("analytics") != lock_key("other")
    with database.engine().connect() as connection:
        assert lock_holder(connection, lock_key("analytics")) == "another run"


@pytest.fixture
def other_role(database: Database) -> Iterator[Database]:
    """The database, as a role that cannot read the statistics of other roles."""
    role = f"waiting_{WORKER}"
    execute(database, f"CREATE ROLE {role} LOGIN")
    yield dataclasses.replace(database, url=database.url.set(username=role), lock_seconds=0)
    execute(database, f"DROP ROLE {role}")


def test_the_holder_of_the_lock_is_named_to_another_role(
    answered: Database, other_role: Database
) -> None:
    def refusal() -> str:
        with (
            pytest.raises(McqError) as refused,
            Attempt(other_role, NINE, "a-run-of-another"),
        ):
            pass
        return str(refused.value)

    with Attempt(answered, NINE, "a-run-of-the-owner"):
        named = r"waited 0 s for mcq_analytics a-run-of \(server process \d+\),"
        assert re.search(named, refusal())
    key = lock_key("analytics")
    with answered.engine("").connect() as nameless:
        nameless.execute(text("SELECT pg_advisory_lock(:key)"), {"key": key})
        owner = nameless.execute(text("SELECT current_user")).scalar_one()
        assert re.search(rf"waited 0 s for a session of {owner} \(server process \d+\),", refusal())
