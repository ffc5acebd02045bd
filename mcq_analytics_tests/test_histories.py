"""Generated histories: base tables change in every way, hours run in any order, facts are exact.

`HISTORIES` sets how many are tried; `make test-deep` sets it high.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pyspark.sql import SparkSession
from sqlalchemy import Connection, text

from mcq_analytics.storage.database import Database
from mcq_analytics.windows import HOUR, Window, floor_hour, parse_hour
from mcq_analytics_tests.facts_of import contents, run_facts, wrong_rows

HISTORIES = int(os.environ.get("HISTORIES", "2"))
BEGIN = parse_hour("2024-01-01T00")
HOURS = 6

Draw = Callable[[int], int]
"""Returns a whole number from 0 up to, and not with, its argument."""


@dataclass
class History:
    """Base tables under change, and the hours that must run again before the facts are exact."""

    connection: Connection
    draw: Draw
    stale: set[int] = field(default_factory=set)
    answers: int = 0

    def moment(self) -> tuple[int, str]:
        """Draw an hour and a moment in it: often the same few, so that ties happen."""
        hour = self.draw(HOURS)
        offset = ("0 s", "0.000001 s", "10 min", "30 min", "59 min 59.999999 s")[self.draw(5)]
        return hour, f"'{(BEGIN + hour * HOUR).isoformat()}'::timestamptz + interval '{offset}'"

    def execute(self, statement: str) -> list[int]:
        """Execute a statement that returns times, and mark their hours as stale."""
        hours = [
            (floor_hour(moment) - BEGIN) // HOUR
            for moment in self.connection.execute(text(statement)).scalars()
        ]
        self.stale.update(hours)
        return hours

    def add_answer(self) -> None:
        self.answers += 1
        option = ("'A'", "'B'", "NULL")[self.draw(3)]
        session = ("1", "2", "3", "NULL")[self.draw(4)]
        self.execute(
            f"INSERT INTO answers VALUES ({self.answers}, {self.draw(3)}, {self.draw(3)}, "
            f"{self.draw(2)}, {session}, {option}, {self.moment()[1]}) RETURNING timestamp"
        )

    def add_submission(self) -> None:
        status = ("'completed'", "'Completed'", "'timeout'", "NULL")[self.draw(4)]
        self.execute(
            f"INSERT INTO submissions VALUES ({self.draw(3)}, {self.draw(2)}, {self.moment()[1]}, "
            f"{status}) RETURNING submit_time"
        )

    def move_answer(self) -> None:
        """The hour that it leaves and the hour that it goes to are both stale."""
        which = f"answer_id = {self.draw(max(self.answers, 1)) + 1}"
        self.execute(f"SELECT timestamp FROM answers WHERE {which}")
        change = (
            f"timestamp = {self.moment()[1]}",
            f"student_id = {self.draw(3)}",
            f"question_id = {self.draw(3)}",
            f"test_id = {self.draw(2)}",
            f"session_id = {self.draw(4)}",
            "submitted_option = 'B'",
        )[self.draw(6)]
        self.execute(f"UPDATE answers SET {change} WHERE {which} RETURNING timestamp")

    def delete_answer(self) -> None:
        which = self.draw(max(self.answers, 1)) + 1
        self.execute(f"DELETE FROM answers WHERE answer_id = {which} RETURNING timestamp")

    def change_submission(self) -> None:
        which = f"student_id = {self.draw(3)} AND test_id = {self.draw(2)}"
        self.execute(f"SELECT submit_time FROM submissions WHERE {which}")
        change = (
            f"UPDATE submissions SET submit_time = {self.moment()[1]}",
            "UPDATE submissions SET completion_status = 'COMPLETED'",
            "DELETE FROM submissions",
        )[self.draw(3)]
        self.execute(f"{change} WHERE {which} RETURNING submit_time")

    def change_session(self) -> None:
        """All hours with an answer of the session are stale."""
        session = self.draw(3) + 1
        expiry = ("NULL", "'infinity'", self.moment()[1])[self.draw(3)]
        self.connection.execute(text(f"DELETE FROM sessions WHERE session_id = {session}"))
        if self.draw(4):
            self.connection.execute(text(f"INSERT INTO sessions VALUES ({session}, {expiry})"))
        self.execute(f"SELECT timestamp FROM answers WHERE session_id = {session}")

    def change_key(self) -> None:
        """All hours with an answer to the question are stale."""
        question = self.draw(3)
        key = ("'A'", "'B'", "NULL")[self.draw(3)]
        self.connection.execute(text(f"DELETE FROM questions WHERE question_id = {question}"))
        if self.draw(4):
            self.connection.execute(text(f"INSERT INTO questions VALUES ({question}, {key})"))
        self.execute(f"SELECT timestamp FROM answers WHERE question_id = {question}")


CHANGES = (
    History.add_answer,
    History.add_answer,
    History.add_answer,
    History.add_submission,
    History.move_answer,
    History.delete_answer,
    History.change_submission,
    History.change_session,
    History.change_key,
)


@pytest.fixture
def emptied(database: Database) -> Callable[[], Database]:
    """Return a function that empties all tables of a database."""

    def empty() -> Database:
        with database.engine().begin() as connection:
            tables = connection.execute(
                text(
                    "SELECT string_agg(format('%I.%I', schemaname, tablename), ', ') "
                    "FROM pg_tables WHERE schemaname IN ('public', 'analytics') "
                    "AND tablename <> 'alembic_version'"
                )
            ).scalar_one()
            connection.execute(text(f"TRUNCATE {tables}"))
        return database

    return empty


@pytest.mark.timeout(0)
@settings(
    max_examples=HISTORIES,
    deadline=None,
    derandomize=HISTORIES <= 10,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)
@given(data=st.data())
def test_a_history_of_changes_and_runs_ends_exact(
    emptied: Callable[[], Database], spark: SparkSession, data: st.DataObject
) -> None:
    database = emptied()

    def draw(bound: int) -> int:
        return data.draw(st.integers(0, bound - 1))

    stale: set[int] = set()
    answers = 0
    for _ in range(data.draw(st.integers(2, 4), label="rounds")):
        with database.engine().begin() as connection:
            history = History(connection, draw, stale, answers)
            for _ in range(data.draw(st.integers(3, 8), label="changes")):
                CHANGES[draw(len(CHANGES))](history)
            answers = history.answers
        first = draw(HOURS)
        last = first + 1 + draw(HOURS - first)
        run_hours(database, spark, first, last)
        stale.difference_update(range(first, last))
    for hour in data.draw(st.permutations(sorted(stale)), label="stale hours"):
        run_hours(database, spark, hour, hour + 1)
    assert wrong_rows(database) == []
    settled = contents(database)
    run_hours(database, spark, 0, HOURS)
    assert contents(database) == settled


def run_hours(database: Database, spark: SparkSession, first: int, last: int) -> None:
    run_facts(database, spark, Window(BEGIN + first * HOUR, BEGIN + last * HOUR))
