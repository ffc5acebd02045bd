"""Audits of stored fact rows in plain SQL, independent of the Spark code that computed them.

Per window: a recompute of some rows, and counts of base rows without a counterpart. What every row
must satisfy is left to the constraints of the tables. `definitions.checks` turns the results into
asset checks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text
from sqlalchemy.dialects import postgresql

from mcq_analytics.compute.fingerprints import computed_hours, stale_hours
from mcq_analytics.compute.judged_answers import judged, outcomes
from mcq_analytics.compute.templates import Templates
from mcq_analytics.model.facts import (
    QUESTION_INTERACTION,
    TEST_FUNNEL,
    TEST_SUMMARY,
    ColumnType,
    Fact,
)
from mcq_analytics.model.windows import Window, ranges
from mcq_analytics.postgres.identifiers import quoted
from mcq_analytics.postgres.inspection import BaseTables

SAMPLE = 20
"""Rows of a window that are recomputed: their whole history is read, in one session."""

_CANDIDATES: Mapping[str, str] = {
    QUESTION_INTERACTION.name: """
        SELECT {a.student_id} AS student_id, {a.test_id} AS test_id, {a.question_id} AS question_id
        FROM {answers} a WHERE {answers_in_window} AND {answer_has_keys}
    """,
    TEST_SUMMARY.name: """
        SELECT {a.student_id} AS student_id, {a.test_id} AS test_id
        FROM {answers} a WHERE {answers_in_window} AND {answer_has_keys}
    """,
    TEST_FUNNEL.name: """
        SELECT {b.test_id} AS test_id FROM {submissions} b
        WHERE {submissions_in_window} AND {submission_has_keys}
    """,
}

# A recompute is one statement, `_DIFFERENT_ROWS`, with these common table expressions in order:
#   sample    the keys of the fact to recompute, at most SAMPLE of them
#   sittings  the funnel only: submissions by student, test and time
#   judged    the answers that `_ANSWERS` selects, with `is_valid` and `correct_option`
#   expected  the rows that the fact should have for the sample, and actual: those that it has
# Each may use those before it. `{outcomes}` is a query over `judged`, `{outcomes_of_sample}` the
# same for the students and tests of `sample`: see `outcomes` in `compute.judged_answers`.
_ANSWERS: Mapping[str, str] = {
    QUESTION_INTERACTION.name: """
        SELECT {answer_columns}
        FROM sample k JOIN {answers} a ON a.student_id = k.student_id AND a.test_id = k.test_id
            AND a.question_id = k.question_id
        WHERE {answer_has_keys}
    """,
    # The totals need all answers of a test; the rest needs those of the sampled students only.
    TEST_SUMMARY.name: """
        SELECT {answer_columns}
        FROM (SELECT DISTINCT test_id FROM sample) k
        JOIN {answers} a ON a.test_id = k.test_id
        WHERE {answer_has_keys}
    """,
    TEST_FUNNEL.name: """
        SELECT {answer_columns}
        FROM (SELECT DISTINCT student_id, test_id FROM sittings) k
        JOIN {answers} a ON a.student_id = k.student_id AND a.test_id = k.test_id
        WHERE {answer_has_keys}
    """,
}

_EXPECTED: Mapping[str, str] = {
    QUESTION_INTERACTION.name: """
    {judged}, expected AS (
        SELECT student_id, test_id, question_id, first_answer_time, last_answer_time,
            answer_count, final_answer_option, is_correct,
            answer_count > 1 AS revisited,
            extract(epoch FROM last_answer_time - first_answer_time) AS time_spent
        FROM ({outcomes}) o
    )""",
    TEST_SUMMARY.name: """
    {judged}, totals AS (
        SELECT test_id, count(DISTINCT question_id) AS total_questions
        FROM judged WHERE is_valid GROUP BY test_id
    ), expected AS (
        SELECT o.student_id, o.test_id, t.total_questions,
            count(*) AS questions_attempted,
            count(*) FILTER (WHERE o.is_correct) AS correct_answers,
            100.0 * count(*) FILTER (WHERE o.is_correct) / count(*) AS accuracy_percent,
            extract(epoch FROM max(o.last_answer_time) - min(o.first_answer_time)) AS time_spent
        FROM ({outcomes_of_sample}) o
        JOIN totals t ON t.test_id = o.test_id
        GROUP BY o.student_id, o.test_id, t.total_questions
    )""",
    # An answer belongs to the next submission. Instead of a join, both are ordered and numbered.
    TEST_FUNNEL.name: """
    sittings AS (
        SELECT student_id, test_id, submit_time, count(*) AS submissions,
            count(*) FILTER (WHERE lower(completion_status) = 'completed') AS completed
        FROM (
            SELECT {submission_columns}
            FROM sample k JOIN {submissions} b ON b.test_id = k.test_id
            WHERE {submission_has_keys}
        ) b
        GROUP BY student_id, test_id, submit_time
    ), {judged}, events AS (
        SELECT student_id, test_id, submit_time AS moment, true AS is_submission,
            submissions, completed
        FROM sittings
        UNION ALL SELECT student_id, test_id, "timestamp", false, 0, 0 FROM judged WHERE is_valid
    ), numbered AS (
        SELECT *, count(*) FILTER (WHERE is_submission) OVER (
            PARTITION BY student_id, test_id ORDER BY moment, is_submission
            ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS number
        FROM events
    ), timed AS (
        SELECT test_id, sum(submissions) AS submissions, sum(completed) AS completed,
            extract(epoch FROM max(moment) - min(moment) FILTER (WHERE NOT is_submission))
                AS seconds
        FROM numbered GROUP BY student_id, test_id, number HAVING bool_or(is_submission)
    ), expected AS (
        SELECT test_id, sum(submissions) AS total_submissions,
            sum(completed) AS completed_submissions,
            sum(submissions - completed) AS incomplete_submissions,
            100.0 * sum(completed) / sum(submissions) AS completion_rate,
            sum(seconds * submissions) / sum(submissions) FILTER (WHERE seconds IS NOT NULL)
                AS avg_submit_time
        FROM timed GROUP BY test_id
    )""",
}

_DIFFERENT_ROWS = """
    WITH sample AS MATERIALIZED (
        SELECT * FROM (
            {candidates} UNION SELECT {hours_key} FROM {hours} h WHERE {hours_in_window}
        ) c ORDER BY hash_record_extended(ROW({key}), :seed) LIMIT :sample
    ), {expected}, actual AS (
        SELECT f.* FROM sample k JOIN {fact} f USING ({key})
    )
    SELECT CAST(ROW({key}) AS text) AS key, test_id FROM actual FULL JOIN expected USING ({key})
    WHERE actual.test_id IS NULL OR expected.test_id IS NULL OR {different}
"""

_SAMPLE_SIZE = """
    SELECT least(:sample, count(*)) FROM (
        {candidates} UNION SELECT {hours_key} FROM {hours} h WHERE {hours_in_window}
    ) c
"""

_HOURS_OF_TESTS = """
    SELECT DISTINCT date_trunc('hour', {answer_time}, 'UTC') AS hour, {a.test_id}
    FROM {answers} a WHERE a.test_id = ANY({tests}) AND {answer_has_keys}
    UNION SELECT DISTINCT date_trunc('hour', {submit_time}, 'UTC'), {b.test_id}
    FROM {submissions} b WHERE b.test_id = ANY({tests}) AND {submission_has_keys}
    UNION SELECT h.hour, {h.test_id} FROM {hours} h
    WHERE h.test_id = ANY({tests}) AND h.hour BETWEEN {earliest} AND {latest}
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


@dataclass(frozen=True)
class Recomputed:
    """The result of recomputing a sample of rows: its size, and the keys of rows that differ.

    Rows in `awaiting` differ because base rows of their tests arrived or changed since, in hours
    that are still to run. Rows in `wrong` have no such excuse.
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
        """Return the end of the latest hour that the fact was computed over, or None."""
        statement = (
            f"SELECT max(hour) + interval '1 hour' FROM {quoted(self.schema, 'hour_fingerprint')} "
            "WHERE pipeline_name = :fact"
        )
        found: datetime | None = connection.execute(
            text(statement), {"fact": self.fact.name}
        ).scalar()
        return found

    def references(self, connection: Connection) -> dict[str, int]:
        """Return the number of base rows of the window without a counterpart, by kind."""
        statements = _REFERENCES.get(self.fact.name, {})
        return {what: self._count(connection, statement) for what, statement in statements.items()}

    def recomputed(self, connection: Connection, seed: int = 0) -> Recomputed:
        """Recompute a sample of rows, drawn by `seed`, from their whole history."""
        candidates = self._fill(_CANDIDATES[self.fact.name])
        bound = {**self._bound, "sample": SAMPLE, "seed": seed}
        sampled = connection.execute(
            text(self._fill(_SAMPLE_SIZE, candidates=candidates)), bound
        ).scalar_one()
        expected = self._fill(
            _EXPECTED[self.fact.name],
            judged=self._fill(judged(_ANSWERS[self.fact.name])),
            outcomes=outcomes(),
            outcomes_of_sample=outcomes("judged JOIN sample USING (student_id, test_id)"),
        )
        statement = self._fill(
            _DIFFERENT_ROWS, candidates=candidates, expected=expected, different=self._different
        )
        rows = connection.execute(text(statement), bound).all()
        unsettled = self._unsettled_tests(connection, {row.test_id for row in rows})
        return Recomputed(
            sampled,
            wrong=tuple(row.key for row in rows if row.test_id not in unsettled),
            awaiting=tuple(row.key for row in rows if row.test_id in unsettled),
        )

    def _unsettled_tests(self, connection: Connection, tests: Iterable[object]) -> set[object]:
        """Return the tests with an hour that was never computed, or has changed since."""
        chosen = list(tests)
        if not chosen:
            return set()
        id_type = self.base.sql_type(self.fact.key_table, "test_id").compile(postgresql.dialect())
        statement = self._fill(_HOURS_OF_TESTS, tests=f"CAST(:tests AS {id_type}[])")
        tests_of: dict[datetime, set[object]] = {}
        for hour, test in connection.execute(text(statement), {"tests": chosen}):
            tests_of.setdefault(hour, set()).add(test)
        done = computed_hours(connection, self.schema, self.fact)
        unsettled = set().union(*(tests_of[hour] for hour in tests_of.keys() - done))
        # Comparing hours is expensive: only those that can still decide about a test.
        rest = (hour for hour, some in tests_of.items() if hour in done and some - unsettled)
        for window in ranges(rest):
            for hour in stale_hours(connection, self.base, self.schema, self.fact, window):
                unsettled |= tests_of[hour]
        return unsettled

    @property
    def _different(self) -> str:
        conditions = []
        for column in self.fact.columns:
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

    @property
    def _bound(self) -> dict[str, object]:
        return {"window_start": self.window.start, "window_end": self.window.end}

    def _count(self, connection: Connection, template: str) -> int:
        return int(connection.execute(text(self._fill(template)), self._bound).scalar_one())

    def _fill(self, template: str, **more: str) -> str:
        names = {
            "fact": quoted(self.schema, self.fact.name),
            "hours": quoted(self.schema, self.fact.hours_table),
            "key": ", ".join(quoted(name) for name in self.fact.key),
        }
        return Templates(self.fact, self.base, names).fill(template, **more)
