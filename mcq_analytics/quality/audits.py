"""Audits of stored rows in plain SQL, independent of the Spark code that computed them.

Per window: a recompute of some students' tests, what spans students against what is stored of each,
and counts of base rows without a counterpart. What every row must satisfy is left to the
constraints of the tables. `definitions.checks` turns the results into asset checks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text
from sqlalchemy.dialects import postgresql

from mcq_analytics.compute.fingerprints import computed_hours, stale_hours, stored_rows
from mcq_analytics.compute.handed_in import handed_in
from mcq_analytics.compute.judged_answers import judged, outcomes
from mcq_analytics.compute.spanning import TOTALS
from mcq_analytics.compute.templates import Templates
from mcq_analytics.model.facts import (
    QUESTION_INTERACTION,
    STUDENT_TEST,
    SUBMISSION_COUNTS,
    TEST_FUNNEL,
    TEST_SUMMARY,
    ColumnType,
    Fact,
    FactColumn,
)
from mcq_analytics.model.windows import HOUR, Window, ranges
from mcq_analytics.postgres.identifiers import quoted
from mcq_analytics.postgres.inspection import SQL_TYPES, BaseTables

SAMPLE = 20
"""Students' tests of a window that are recomputed, from their whole history."""
SAMPLED_ROWS = 100_000
"""The sample of a window with more base rows is drawn from a part of it."""
SUMMED_ROWS = 50_000
"""Tests of the sample are summed up until they have this many submissions; at least one is."""

# Some of the students' tests that the window touches, in a temporary table: they are found once.
_SAMPLE = """
    CREATE TEMPORARY TABLE sample AS
    SELECT * FROM (
        SELECT {a.student_id} AS student_id, {a.test_id} AS test_id
        FROM {answers} a WHERE {answers_in_window} AND {answer_has_keys}
        UNION
        SELECT {b.student_id}, {b.test_id}
        FROM {submissions} b WHERE {submissions_in_window} AND {submission_has_keys}
        UNION
        SELECT {h.student_id}, {h.test_id} FROM {hours} h WHERE {hours_in_window}
    ) touched
    ORDER BY hash_record_extended(ROW(student_id, test_id), :seed) LIMIT :sample
"""

_ANSWERS = "SELECT {answer_columns} FROM sample k {answers_of_key} WHERE {answer_has_keys}"

# What the rows of the sample should be, by the name of their table: common table expressions, the
# last of which is `expected`.
_EXPECTED: Mapping[str, str] = {
    QUESTION_INTERACTION.name: """
    {judged}, expected AS (
        SELECT student_id, test_id, question_id, first_answer_time, last_answer_time,
            answer_count, final_answer_option, is_correct,
            answer_count > 1 AS revisited,
            extract(epoch FROM last_answer_time - first_answer_time) AS time_spent
        FROM ({outcomes}) o
    )""",
    # The totals follow from the stored interactions of all students.
    TEST_SUMMARY.name: """
    {judged}, totals AS MATERIALIZED ({totals}), expected AS (
        SELECT o.student_id, o.test_id, t.total_questions,
            count(*) AS questions_attempted,
            count(*) FILTER (WHERE o.is_correct) AS correct_answers,
            100.0 * count(*) FILTER (WHERE o.is_correct) / count(*) AS accuracy_percent,
            extract(epoch FROM max(o.last_answer_time) - min(o.first_answer_time)) AS time_spent
        FROM ({outcomes}) o LEFT JOIN totals t ON t.test_id = o.test_id
        GROUP BY o.student_id, o.test_id, t.total_questions
    )""",
    TEST_FUNNEL.name: "{handed_in}, expected AS (SELECT * FROM handed_in)",
}

_DIFFERENT_ROWS = """
    WITH {expected}, actual AS (
        SELECT f.* FROM sample k CROSS JOIN LATERAL (
            SELECT * FROM {table} f
            WHERE f.student_id = k.student_id AND f.test_id = k.test_id OFFSET 0
        ) f
    )
    SELECT CAST(ROW({key}) AS text) AS key, student_id, test_id
    FROM actual FULL JOIN expected USING ({key})
    WHERE actual.test_id IS NULL OR expected.test_id IS NULL OR {different}
"""

# The funnel of some tests, small ones first, against the sum of what is stored of each student.
_DIFFERENT_SUMS = """
    WITH counted AS (
        SELECT t.test_id, coalesce(f.total_submissions, 0) AS size
        FROM (SELECT DISTINCT test_id FROM sample) t LEFT JOIN {table} f ON f.test_id = t.test_id
    ), tests AS MATERIALIZED (
        SELECT test_id FROM (
            SELECT test_id, size, sum(size) OVER (ORDER BY size, test_id) AS up_to_here FROM counted
        ) s WHERE up_to_here <= :summed OR up_to_here = size
    ), expected AS (
        SELECT t.test_id, {sums} FROM tests t CROSS JOIN LATERAL (
            SELECT {counts} FROM {stored} s WHERE s.test_id = t.test_id HAVING count(*) > 0
        ) s
    ), actual AS (
        SELECT f.* FROM tests t JOIN {table} f ON f.test_id = t.test_id
    )
    SELECT CAST(ROW(test_id) AS text) FROM actual FULL JOIN expected USING (test_id)
    WHERE actual.total_submissions IS NULL OR expected.total_submissions IS NULL OR {different}
"""
_SUMS = {
    "total_submissions": "submissions",
    "completed_submissions": "completed_submissions",
    "incomplete_submissions": "submissions - completed_submissions",
    "completion_rate": "100.0 * completed_submissions / submissions",
    "avg_submit_time": "timed_microseconds / nullif(timed_submissions, 0) / 1000000",
    "timed_submissions": "timed_submissions",
    "timed_microseconds": "timed_microseconds",
}

_HOURS_OF_STUDENT_TESTS = """
    WITH k AS MATERIALIZED (
        SELECT * FROM unnest({students}, {tests}) AS k (student_id, test_id)
    )
    SELECT DISTINCT date_trunc('hour', {answer_time}, 'UTC') AS hour, k.student_id, k.test_id
    FROM k {answers_of_key} WHERE {answer_has_keys}
    UNION SELECT DISTINCT date_trunc('hour', {submit_time}, 'UTC'), k.student_id, k.test_id
    FROM k {submissions_of_key} WHERE {submission_has_keys}
"""

_REFERENCES: Mapping[str, Mapping[str, str]] = {
    QUESTION_INTERACTION.name: {
        "answers_without_question": """
            SELECT count(*) FROM {answers} a WHERE {answers_in_window} AND a.question_id IS NOT NULL
            AND NOT EXISTS (SELECT 1 FROM {questions} q WHERE q.question_id = {a.question_id})
        """,
        "answers_without_session": """
            SELECT count(*) FROM {answers} a WHERE {answers_in_window}
            AND NOT EXISTS (SELECT 1 FROM {sessions} s WHERE s.session_id = {a.session_id})
        """,
    },
    TEST_FUNNEL.name: {
        "submissions_without_answer": """
            SELECT count(*) FROM {submissions} b
            WHERE {submissions_in_window} AND {submission_has_keys} AND NOT EXISTS (
                SELECT 1 FROM {answers} a
                WHERE a.student_id = {b.student_id} AND a.test_id = {b.test_id})
        """,
    },
}

_Pair = tuple[object, object]


@dataclass(frozen=True)
class Recomputed:
    """The result of recomputing a sample of students' tests: its size, and the keys of wrong rows.

    Rows in `awaiting` differ because base rows of the student's test arrived or changed since, in
    hours that are still to run. Rows in `wrong` have no such excuse.
    """

    sampled: int
    wrong: tuple[str, ...]
    awaiting: tuple[str, ...]


@dataclass(frozen=True)
class Audits:
    """The audits of one fact over a window. Run all of them in one snapshot."""

    fact: Fact
    base: BaseTables
    schema: str
    window: Window

    def computed_until(self, connection: Connection) -> datetime | None:
        """Return the end of the latest hour that the facts were computed over, or None."""
        statement = (
            f"SELECT max(hour) + interval '1 hour' FROM {quoted(self.schema, 'hour_fingerprint')}"
        )
        found: datetime | None = connection.execute(text(statement)).scalar()
        return found

    def references(self, connection: Connection) -> dict[str, int]:
        """Return the number of base rows of the window without a counterpart, by kind."""
        statements = _REFERENCES.get(self.fact.name, {})
        return {
            what: int(connection.execute(text(self._fill(statement)), self._window).scalar_one())
            for what, statement in statements.items()
        }

    def recomputed(self, connection: Connection, seed: int = 0) -> Recomputed:
        """Recompute a sample of students' tests, drawn by `seed`; check what spans students.

        For the funnel, the rows are those of which its sums are made; then the sums are compared.
        """
        part = self._sampled(connection, seed)
        bound = {
            "window_start": part.start,
            "window_end": part.end,
            "sample": SAMPLE,
            "seed": seed,
        }
        sampled = connection.execute(text(self._fill(_SAMPLE)), bound).rowcount
        connection.execute(text("ANALYZE sample"))
        rows = connection.execute(text(self._different_rows())).all()
        unsettled = self._unsettled(connection, {(row.student_id, row.test_id) for row in rows})
        wrong = [row.key for row in rows if (row.student_id, row.test_id) not in unsettled]
        if self.fact == TEST_FUNNEL:
            statement = text(self._different_sums())
            wrong += connection.execute(statement, {"summed": SUMMED_ROWS}).scalars()
        connection.execute(text("DROP TABLE sample"))
        return Recomputed(
            sampled,
            wrong=tuple(wrong),
            awaiting=tuple(row.key for row in rows if (row.student_id, row.test_id) in unsettled),
        )

    def _sampled(self, connection: Connection, seed: int) -> Window:
        """Return the part of the window that the sample is drawn from."""
        rows = stored_rows(connection, self.schema, self.window)
        part = self.window
        while part.hours > 1 and sum(rows.get(hour, 0) for hour in part.starts()) > SAMPLED_ROWS:
            middle = part.start + part.hours // 2 * HOUR
            halves = (Window(part.start, middle), Window(middle, part.end))
            filled = [half for half in halves if any(rows.get(hour) for hour in half.starts())]
            part = filled[seed % len(filled)]
            seed //= 2
        return part

    def _different_rows(self) -> str:
        of_submissions = self.fact == TEST_FUNNEL
        table = "student_test_submissions" if of_submissions else self.fact.name
        key = STUDENT_TEST if of_submissions else self.fact.key
        return self._fill(
            _DIFFERENT_ROWS,
            expected=self._fill(
                _EXPECTED[self.fact.name],
                judged=self._fill(judged(_ANSWERS)),
                outcomes=outcomes(),
                totals=TOTALS.format(
                    touched="sample", interactions=quoted(self.schema, QUESTION_INTERACTION.name)
                ),
                handed_in=self._fill(handed_in("sample")),
            ),
            table=quoted(self.schema, table),
            key=", ".join(map(quoted, key)),
            different=_different(SUBMISSION_COUNTS if of_submissions else self.fact.columns),
        )

    def _different_sums(self) -> str:
        return self._fill(
            _DIFFERENT_SUMS,
            table=quoted(self.schema, TEST_FUNNEL.name),
            stored=quoted(self.schema, "student_test_submissions"),
            counts=", ".join(f"sum({one.name}) AS {one.name}" for one in SUBMISSION_COUNTS),
            sums=", ".join(f"{sql} AS {name}" for name, sql in _SUMS.items()),
            different=_different([*TEST_FUNNEL.columns, *TEST_FUNNEL.technical]),
        )

    def _unsettled(self, connection: Connection, pairs: Iterable[_Pair]) -> set[_Pair]:
        """Return the students' tests with an hour that was never computed, or has changed since."""
        chosen = list(pairs)
        if not chosen:
            return set()
        types = {
            name: SQL_TYPES[self.base.student_test_type(name)].compile(postgresql.dialect())
            for name in STUDENT_TEST
        }
        statement = self._fill(
            _HOURS_OF_STUDENT_TESTS,
            students=f"CAST(:students AS {types['student_id']}[])",
            tests=f"CAST(:tests AS {types['test_id']}[])",
        )
        bound = {"students": [pair[0] for pair in chosen], "tests": [pair[1] for pair in chosen]}
        pairs_of: dict[datetime, set[_Pair]] = {}
        for hour, student, test in connection.execute(text(statement), bound):
            pairs_of.setdefault(hour, set()).add((student, test))
        done = computed_hours(connection, self.schema)
        unsettled = set().union(*(pairs_of[hour] for hour in pairs_of.keys() - done))
        # Comparing hours is expensive: only those that can still decide about a student's test.
        rest = (hour for hour, some in pairs_of.items() if hour in done and some - unsettled)
        for window in ranges(rest):
            for hour in stale_hours(connection, self.base, self.schema, window):
                unsettled |= pairs_of[hour]
        return unsettled

    @property
    def _window(self) -> dict[str, object]:
        return {"window_start": self.window.start, "window_end": self.window.end}

    def _fill(self, template: str, **more: str) -> str:
        names = {"hours": quoted(self.schema, "student_test_hour")}
        return Templates(self.base, names).fill(template, **more)


def _different(columns: Sequence[FactColumn]) -> str:
    """Return the condition that `actual` and `expected` differ in some column."""
    conditions = []
    for column in columns:
        one, other = f"actual.{quoted(column.name)}", f"expected.{quoted(column.name)}"
        if column.type is ColumnType.FLOAT:
            # Sums in another order differ in the last digits.
            conditions.append(
                f"({one} IS NULL) <> ({other} IS NULL) "
                f"OR abs({one} - {other}) > 1e-9 * greatest(1, abs({other}))"
            )
        else:
            conditions.append(f"{one} IS DISTINCT FROM {other}")
    return " OR ".join(conditions)
