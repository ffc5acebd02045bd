"""Generated histories: base tables change in every way, hours run in any order, facts are exact.

`HISTORIES` sets how many are tried, each of `STEPS` steps; `make test-deep` sets it high. If one
fails, the shortest that fails is printed as the lines of a test: put them under

    def test_…(history: type[History]) -> None:
        state = history()

and end with `state.teardown()`. The changes and runs are in `histories`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from pyspark.sql import SparkSession

from mcq_analytics.postgres.database import Database
from mcq_analytics_tests.affected_hours import documented_rules
from mcq_analytics_tests.facts_of import execute
from mcq_analytics_tests.histories import History
from mcq_analytics_tests.servers import CHECKOUT

HISTORIES = int(os.environ.get("HISTORIES", "2"))
STEPS = int(os.environ.get("STEPS", "12"))


@pytest.fixture
def history(
    database: Database, spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> type[History]:
    """Return the class of histories; its empty database allows duplicate keys and sessions."""
    execute(
        database,
        "ALTER TABLE questions DROP CONSTRAINT questions_pkey",
        "ALTER TABLE sessions DROP CONSTRAINT sessions_pkey",
    )
    monkeypatch.setattr(History, "world", (database, spark, monkeypatch), raising=False)
    return History


@pytest.mark.timeout(0)
def test_a_history_of_changes_and_runs_ends_exact(history: type[History]) -> None:
    run_state_machine_as_test(
        history,
        settings=settings(
            max_examples=HISTORIES,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize=HISTORIES <= 10,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
        ),
    )


def test_every_documented_change_is_tried() -> None:
    named: Iterable[str] = documented_rules()
    source = (CHECKOUT / "mcq_analytics_tests" / "histories.py").read_text()
    assert [change for change in named if f'"{change}"' not in source] == []
