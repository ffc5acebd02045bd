"""Every trap of cumulative facts gives the expected facts, and all together a full recompute.

All traps happen to the same tables at once: nine o'clock runs, then the changes come, then the
hours from ten to past midnight run, then nine o'clock again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import pytest
from pyspark.sql import SparkSession
from sqlalchemy import text
from sqlalchemy.engine import URL

from mcq_analytics.model.facts import IdType
from mcq_analytics.postgres.database import Database
from mcq_analytics_tests.conftest import made_databases
from mcq_analytics_tests.facts_of import contents, execute, run_facts, scalar, window, wrong_rows
from mcq_analytics_tests.traps import TRAPS, Trap

NINE = window("2024-01-01T09", "2024-01-01T10")
TEN = window("2024-01-01T10", "2024-01-02T01")
NUMBERED = {trap: 101 + number for number, trap in enumerate(TRAPS)}
Shown = Mapping[str, Mapping[Trap, object]]


def show(database: Database) -> dict[Trap, object]:
    """Return the facts of each trap as they are now."""
    with database.engine().connect() as connection:
        return {
            trap: connection.execute(text(trap.shown.format(t=t))).scalar()
            for trap, t in NUMBERED.items()
        }


@pytest.fixture(scope="module")
def trapped(server: URL, templates: Callable[[IdType], str]) -> Iterator[Database]:
    """A database for all traps."""
    with made_databases(server, templates) as make:
        yield make()


@pytest.fixture(scope="module")
def shown(trapped: Database, spark: SparkSession) -> Shown:
    """The facts before the changes, after the run of ten, and at the end."""
    for trap, t in NUMBERED.items():
        execute(trapped, *(statement.format(t=t) for statement in trap.before))
    run_facts(trapped, spark, NINE)
    stages = {"before": show(trapped)}
    for trap, t in NUMBERED.items():
        execute(trapped, *(statement.format(t=t) for statement in trap.change))
    run_facts(trapped, spark, TEN)
    stages["ten"] = show(trapped)
    run_facts(trapped, spark, NINE)
    stages["at the end"] = show(trapped)
    return stages


@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.name)
def test_each_trap_gives_the_expected_facts(shown: Shown, trap: Trap) -> None:
    assert shown["before"][trap] == trap.had
    if trap.hours == "ten":
        assert shown["ten"][trap] == trap.has
    assert shown["at the end"][trap] == trap.has


@pytest.mark.usefixtures("shown")
def test_all_traps_together_equal_a_full_recompute_and_a_repeated_run_changes_nothing(
    trapped: Database, spark: SparkSession
) -> None:
    assert wrong_rows(trapped) == []
    exact = contents(trapped)
    run_facts(trapped, spark, window("2024-01-01T00", "2024-01-02T01"))
    assert contents(trapped) == exact


def test_a_new_question_in_a_test_of_100_000_students_reads_one_key_and_updates_all_totals(
    database: Database, spark: SparkSession
) -> None:
    execute(
        database,
        "INSERT INTO answers SELECT n, n, 1, 5, NULL, 'A', '2024-01-01 09:10Z' "
        "FROM generate_series(1, 100000) n",
    )
    run_facts(database, spark, NINE)
    execute(database, "INSERT INTO answers VALUES (0, 7, 2, 5, NULL, 'A', '2024-01-01 10:10Z')")
    report = run_facts(database, spark, TEN)
    assert report.touched == 1
    assert report.counts["test_summary_fact"].updated == 100_000
    assert wrong_rows(database) == []
    totals = "SELECT array_agg(DISTINCT total_questions) FROM analytics.test_summary_fact"
    assert scalar(database, totals) == [2]
