"""The state machine of generated histories: each rule changes base tables or runs hours."""

from __future__ import annotations

import re
from datetime import datetime
from typing import ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    multiple,
    rule,
)
from pyspark.sql import SparkSession
from sqlalchemy import text

from mcq_analytics.compute import inputs
from mcq_analytics.compute.fingerprints import stale_hours
from mcq_analytics.model.facts import FACTS_BY_NAME
from mcq_analytics.model.windows import HOUR, Window, parse_hour, ranges
from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.hours import hours_of_facts
from mcq_analytics.postgres.inspection import inspect_base_tables
from mcq_analytics.postgres.partitions import partition_facts
from mcq_analytics.settings import load_settings
from mcq_analytics.spark.scaling import QUICK_RECORDS
from mcq_analytics_tests.affected_hours import hours_to_run
from mcq_analytics_tests.disagreements import disagreements_now
from mcq_analytics_tests.facts_of import contents, run_facts, wrong_rows
from mcq_analytics_tests.reading import WAYS, read_by
from mcq_analytics_tests.tally import TALLY

BEGIN = parse_hour("2024-01-01T00")
HOURS = 4
hours = st.integers(0, HOURS - 1)
# Few moments, so that ties are frequent; among them the first and the last of the hour.
moments = st.builds(
    "{}:{}".format,
    hours,
    st.sampled_from(["00:00", "00:00.000001", "10:00", "30:00", "59:59.999999"]),
)
students, tests, questions = st.integers(0, 2), st.integers(0, 1), st.integers(0, 2)
sessions = st.sampled_from([1, 2, 3, None])
options = st.sampled_from(["A", "a", "B", None])
statuses = st.sampled_from(["completed", "Completed", "timeout", None])
expiries = st.one_of(
    st.sampled_from([None, "infinity", "-infinity", "294276-12-31 23:59:59", "4713-01-01 BC"]),
    moments,
)
answer_columns = st.tuples(students, tests, questions, sessions, options, moments)


def literal(value: object) -> str:
    """Return a value as an SQL literal; a time without a date is on the first of January."""
    if value is None:
        return "NULL"
    is_time = re.match(r"\d+:", str(value)) is not None
    return f"'2024-01-01 {value}Z'" if is_time else f"'{value}'"


class History(RuleBasedStateMachine):
    """Changing base tables, and the hours that must run again."""

    world: ClassVar[tuple[Database, SparkSession, pytest.MonkeyPatch]]

    answers = Bundle("answers")
    submissions = Bundle("submissions")

    def __init__(self) -> None:
        super().__init__()
        self.database, self.spark, self.patch = self.world
        self.stale: set[datetime] = set()
        self.rows = 0
        self.execute(
            "SELECT format('TRUNCATE %s', string_agg(format('%I.%I', schemaname, tablename), ', '))"
            " FROM pg_tables WHERE schemaname IN ('public', 'analytics') "
            "AND tablename <> 'alembic_version'"
        )
        TALLY["histories"] += 1

    def execute(self, statement_of: str) -> None:
        """Execute the statement that a query returns."""
        with self.database.engine().begin() as connection:
            connection.execute(text(connection.execute(text(statement_of)).scalar_one()))

    def change(self, kind: str, condition: str, statement: str) -> None:
        """Change the base tables; the hours that docs/exactness.md names become stale."""
        TALLY["changes"] += 1
        with self.database.engine().begin() as connection:
            self.stale |= hours_to_run(connection, kind, condition, statement)

    @initialize(quick=st.booleans(), way=st.sampled_from(WAYS), partitions=st.sampled_from([1, 3]))
    def compute_as(self, quick: bool, way: str, partitions: int) -> None:
        """Choose the plans for few records, or those for more; how rows are read, and stored."""
        read_by(way, self.patch)
        with self.database.engine().begin() as connection:
            partition_facts(connection, self.database.fact_schema, partitions)
        self.patch.setattr(inputs, "QUICK_RECORDS", QUICK_RECORDS if quick else -1)

    @initialize(target=answers, rows=st.lists(answer_columns, max_size=10))
    def begin_with(self, rows: list[tuple[object, ...]]) -> MultipleResults[int]:
        return multiple(*map(self.insert_answer, rows))

    @rule(target=answers, columns=answer_columns)
    def add_answer(self, columns: tuple[object, ...]) -> int:
        return self.insert_answer(columns)

    def insert_answer(self, columns: tuple[object, ...]) -> int:
        self.rows += 1
        values = map(literal, (self.rows, *columns))
        self.change(
            "an answer is added",
            f"answer_id = {self.rows}",
            f"INSERT INTO answers VALUES ({', '.join(values)})",
        )
        return self.rows

    @rule(answer=answers, option=options)
    def change_option(self, answer: int, option: str | None) -> None:
        self.update_answer("an answer is changed", answer, "submitted_option", option)

    @rule(answer=answers, moment=moments)
    def move_answer_to_another_hour(self, answer: int, moment: str) -> None:
        self.update_answer("an answer moves to another hour", answer, '"timestamp"', moment)

    @rule(answer=answers, student=students)
    def give_answer_to_another_student(self, answer: int, student: int) -> None:
        self.update_answer("an answer is changed", answer, "student_id", student)

    @rule(answer=answers, test=tests, question=questions)
    def move_answer_to_another_test(self, answer: int, test: int, question: int) -> None:
        self.update_answer("an answer is changed", answer, "test_id", test)
        self.update_answer("an answer is changed", answer, "question_id", question)

    @rule(answer=answers, session=sessions)
    def move_answer_to_another_session(self, answer: int, session: int | None) -> None:
        self.update_answer("an answer is changed", answer, "session_id", session)

    def update_answer(self, kind: str, answer: int, column: str, value: object) -> None:
        which = f"answer_id = {answer}"
        self.change(kind, which, f"UPDATE answers SET {column} = {literal(value)} WHERE {which}")

    @rule(answer=consumes(answers))
    def delete_answer(self, answer: int) -> None:
        which = f"answer_id = {answer}"
        self.change("an answer is deleted", which, f"DELETE FROM answers WHERE {which}")

    @rule(target=submissions, student=students, test=tests, moment=moments, status=statuses)
    def submit(
        self, student: int, test: int, moment: str, status: str | None
    ) -> tuple[int, int, str]:
        values = ", ".join(map(literal, (student, test, moment, status)))
        which = f"student_id = {student} AND test_id = {test} AND submit_time = {literal(moment)}"
        self.change("a submission is added", which, f"INSERT INTO submissions VALUES ({values})")
        return student, test, moment

    @rule(submission=submissions, status=statuses)
    def change_status(self, submission: tuple[int, int, str], status: str | None) -> None:
        which = self.which(submission)
        self.change(
            "a submission is changed",
            which,
            f"UPDATE submissions SET completion_status = {literal(status)} WHERE {which}",
        )

    @rule(submission=consumes(submissions), moment=moments, target=submissions)
    def move_submission_to_another_hour(
        self, submission: tuple[int, int, str], moment: str
    ) -> tuple[int, int, str]:
        student, test, before = submission
        self.change(
            "a submission moves to another hour",
            f"student_id = {student} AND test_id = {test} "
            f"AND submit_time IN ({literal(before)}, {literal(moment)})",
            f"UPDATE submissions SET submit_time = {literal(moment)} "
            f"WHERE {self.which(submission)}",
        )
        return student, test, moment

    @rule(submission=consumes(submissions))
    def delete_submission(self, submission: tuple[int, int, str]) -> None:
        which = self.which(submission)
        self.change("a submission is deleted", which, f"DELETE FROM submissions WHERE {which}")

    @staticmethod
    def which(submission: tuple[int, int, str]) -> str:
        """Return the condition for all submissions of a student at a moment: they have no key."""
        student, test, moment = submission
        return f"student_id = {student} AND test_id = {test} AND submit_time = {literal(moment)}"

    @rule(session=st.integers(1, 3), rows=st.lists(expiries, max_size=3))
    def change_session(self, session: int, rows: list[str | None]) -> None:
        replace = f"DELETE FROM sessions WHERE session_id = {session}"
        for expiry in rows:
            replace += f"; INSERT INTO sessions VALUES ({session}, {literal(expiry)})"
        self.change(
            "a session is added, deleted or expires at another time",
            f"session_id = {session}",
            replace,
        )

    @rule(question=questions, rows=st.lists(options, max_size=3))
    def change_answer_key(self, question: int, rows: list[str | None]) -> None:
        replace = f"DELETE FROM questions WHERE question_id = {question}"
        for option in rows:
            replace += f"; INSERT INTO questions VALUES ({question}, {literal(option)})"
        self.change(
            "an answer key is added, changed or deleted", f"question_id = {question}", replace
        )

    @rule(way=st.sampled_from(WAYS))
    def read_in_another_way(self, way: str) -> None:
        read_by(way, self.patch)

    @rule(first=hours, count=st.integers(1, HOURS))
    def run(self, first: int, count: int) -> None:
        """Run a window; if nothing is stale any more, all facts must be exact."""
        self.run_window(Window(BEGIN + first * HOUR, BEGIN + min(first + count, HOURS) * HOUR))
        if not self.stale:
            self.compare()

    @rule(hour=hours)
    def run_an_hour_twice(self, hour: int) -> None:
        """The second run changes no row, and no `updated_at`."""
        window = Window(BEGIN + hour * HOUR, BEGIN + (hour + 1) * HOUR)
        self.run_window(window)
        once = contents(self.database)
        self.run_window(window)
        assert contents(self.database) == once

    @rule(newest_first=st.booleans())
    def run_affected_hours(self, newest_first: bool) -> None:
        """Run the stale hours, and nothing else."""
        windows = ranges(self.stale)
        for window in sorted(windows, key=lambda one: one.start, reverse=newest_first):
            self.run_window(window)
        self.compare()

    @rule()
    def run_what_is_missing_or_has_another_fingerprint(self) -> None:
        """Run the hours that the schedule and the late data sensor would request."""
        whole = Window(BEGIN, BEGIN + HOURS * HOUR)
        known = hours_of_facts(self.database.engine(), load_settings(), FACTS_BY_NAME)
        with self.database.engine().connect() as connection:
            base = inspect_base_tables(connection, "public")
            stale = set(stale_hours(connection, base, "analytics", whole))
        done = set.intersection(*(set(hours.statuses()) for hours in known.values()))
        for window in ranges(stale | (set(whole.starts()) - done)):
            self.run_window(window)
        self.stale.clear()
        self.compare()

    def run_window(self, window: Window) -> None:
        """Run a window. Then and at any time, the facts agree with each other."""
        run_facts(self.database, self.spark, window)
        TALLY["attempts in histories"] += 1
        self.stale -= set(window.starts())
        assert disagreements_now(self.database) == []

    def compare(self) -> None:
        wrong = wrong_rows(self.database)
        TALLY["rows wrong"] += len(wrong)
        assert wrong == []

    def teardown(self) -> None:
        """The facts end exact, and another run over everything changes no row."""
        if TALLY["histories"] % 2:
            self.run_affected_hours(newest_first=True)
        else:
            self.run_what_is_missing_or_has_another_fingerprint()
        exact = contents(self.database)
        self.run_window(Window(BEGIN, BEGIN + HOURS * HOUR))
        assert contents(self.database) == exact
