"""Corrections of the answer key: which fact rows disagree with it, and how results will change.

All of the past is compared. Other changes of base rows are found by `compute.fingerprints`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, text

from mcq_analytics.compute.judged_answers import is_correct, judged, outcomes
from mcq_analytics.compute.templates import Templates
from mcq_analytics.model.facts import QUESTION_INTERACTION, TEST_SUMMARY, IdType
from mcq_analytics.postgres.identifiers import quoted
from mcq_analytics.postgres.inspection import BaseTables

_ANSWER_KEY = """
    SELECT count(*) || ':' || coalesce(sum(CAST(hash_record_extended(
        ROW(q.question_id, CAST(q.correct_option AS text)), 0) AS numeric)), 0)
    FROM {questions} q
"""

# A page of rows in the order of the primary key, by its index, and the last key of the page. Ids
# are compared in their widest type: the owner may have changed the type of a base table.
_PAGE = """
    WITH page AS MATERIALIZED (
        SELECT f.student_id, f.test_id, f.question_id, f.final_answer_option, f.is_correct,
            f.last_answer_time
        FROM {interactions} f WHERE {follows}
        ORDER BY f.student_id, f.test_id, f.question_id LIMIT :rows
    ), answer_keys AS (
        SELECT q.question_id, {answer_key} AS correct_option
        FROM (SELECT DISTINCT question_id FROM page) c
        JOIN {questions} q ON q.question_id = c.question_id
        GROUP BY q.question_id
    )
    SELECT CAST(l.student_id AS text) AS student_id, CAST(l.test_id AS text) AS test_id,
        CAST(l.question_id AS text) AS question_id, (SELECT count(*) FROM page) AS rows,
        ARRAY(
            SELECT DISTINCT date_trunc('hour', f.last_answer_time, 'UTC')
            FROM page f LEFT JOIN answer_keys k ON k.question_id = f.question_id
            WHERE f.is_correct IS DISTINCT FROM {is_correct_now}
                AND f.last_answer_time BETWEEN {earliest} AND {latest}
        ) AS hours
    FROM page l ORDER BY l.student_id DESC, l.test_id DESC, l.question_id DESC LIMIT 1
"""
_FOLLOWS = "(f.student_id, f.test_id, f.question_id) > ({})"
_WIDEST = {IdType.INTEGER: "bigint", IdType.BIGINT: "bigint", IdType.TEXT: "text"}

_QUESTION_IS_KNOWN = """
    SELECT EXISTS (SELECT 1 FROM {questions} q WHERE CAST(q.question_id AS text) = :question)
        OR EXISTS (SELECT 1 FROM {interactions} f WHERE CAST(f.question_id AS text) = :question)
"""

# The hours of its answers; and of what is stored, in case the answers are gone.
_QUESTION_HOURS = """
    WITH asked AS MATERIALIZED (
        SELECT {f.student_id} AS student_id, {f.test_id} AS test_id,
            f.first_answer_time, f.last_answer_time
        FROM {interactions} f WHERE CAST(f.question_id AS text) = :question
    ), found AS (
        SELECT {answer_time} AS moment FROM asked k {answers_of_key}
        WHERE {answer_has_keys} AND CAST(a.question_id AS text) = :question
        UNION ALL SELECT first_answer_time FROM asked
        UNION ALL SELECT last_answer_time FROM asked
    )
    SELECT DISTINCT date_trunc('hour', moment, 'UTC') FROM found
    WHERE moment BETWEEN {earliest} AND {latest}
"""

# `pairs` are the students' tests with an answer in one of the hours, now or when last computed.
# `judged` has the answers that `_ANSWERS_OF_PAIRS` selects.
_ANSWERS_OF_PAIRS = """
    SELECT {answer_columns}
    FROM pairs k {answers_of_key} WHERE {answer_has_keys}
"""
_MOVES = """
    WITH pairs AS (
        SELECT {a.student_id} AS student_id, {a.test_id} AS test_id
        FROM unnest(CAST(:hours AS timestamptz[])) AS w (hour)
        JOIN {answers} a ON a."timestamp" >= {hour_start} AND a."timestamp" < {hour_end}
        WHERE {answer_has_keys}
            AND (CAST(:question AS text) IS NULL OR CAST(a.question_id AS text) = :question)
        UNION
        SELECT {h.student_id}, {h.test_id} FROM {hours} h
        WHERE h.hour = ANY(CAST(:hours AS timestamptz[]))
            AND (CAST(:question AS text) IS NULL OR EXISTS (
                SELECT 1 FROM {interactions} f
                WHERE f.student_id = h.student_id AND f.test_id = h.test_id
                    AND CAST(f.question_id AS text) = :question))
    ), {judged}, rows_now AS (
        {outcomes}
    ), rows_before AS (
        SELECT {f.student_id} AS student_id, {f.test_id} AS test_id,
            {f.question_id} AS question_id, f.is_correct
        FROM pairs p CROSS JOIN LATERAL (
            SELECT * FROM {interactions} f
            WHERE f.student_id = p.student_id AND f.test_id = p.test_id OFFSET 0
        ) f
    ), compared AS (
        SELECT student_id, test_id, n.is_correct AS is_correct,
            n.question_id IS NOT NULL AS is_now,
            n.question_id IS NULL OR b.question_id IS NULL
                OR n.is_correct IS DISTINCT FROM b.is_correct AS is_moved
        FROM rows_now n FULL JOIN rows_before b USING (student_id, test_id, question_id)
    ), moved AS (
        SELECT student_id, test_id, count(*) FILTER (WHERE is_moved) AS rows,
            100.0 * count(*) FILTER (WHERE is_correct) / nullif(count(*) FILTER (WHERE is_now), 0)
                AS after
        FROM compared GROUP BY student_id, test_id HAVING bool_or(is_moved)
    )
    SELECT CAST(coalesce(sum(m.rows), 0) AS bigint) AS rows,
        count(DISTINCT m.student_id) AS students,
        CAST(avg(f.accuracy_percent) AS float8) AS before, CAST(avg(m.after) AS float8) AS after
    FROM moved m
    LEFT JOIN {summaries} f ON f.student_id = m.student_id AND f.test_id = m.test_id
"""


class Key(NamedTuple):
    """The key of a row of `question_interaction_fact`, as texts."""

    student_id: str
    test_id: str
    question_id: str


@dataclass(frozen=True)
class Page:
    """A page of rows: their number, the last key, and an hour of each row that is wrong."""

    rows: int
    last: Key | None
    hours: set[datetime]


@dataclass(frozen=True)
class Moves:
    """What a correction changes: rows of `question_interaction_fact`, and students.

    `before` and `after` are the mean accuracy in percent over these students' tests, or None.
    """

    rows: int
    students: int
    before: float | None
    after: float | None


@dataclass(frozen=True)
class Corrections:
    """Comparisons of base tables with the facts in a schema."""

    base: BaseTables
    schema: str

    def answer_key(self, connection: Connection) -> str:
        """Return a fingerprint of the answer key: it changes with every correction."""
        return str(connection.execute(text(self._fill(_ANSWER_KEY))).scalar_one())

    def wrong_rows_after(self, connection: Connection, after: Key | None, rows: int) -> Page:
        """Return the page of rows after a key (or the first page), with the hours to compute again.

        These are one hour of each row that disagrees with the answer key; a run over it corrects
        the row, whatever its other hours. The cost depends on the size of the page alone.
        """
        follows = "true"
        if after is not None:
            ids = ", ".join(
                f"CAST(:{name} AS {_WIDEST.get(self.base.id_type('answers', name), 'uuid')})"
                for name in Key._fields
            )
            follows = _FOLLOWS.format(ids)
        is_correct_now = is_correct("f.final_answer_option", "k.correct_option")
        statement = text(self._fill(_PAGE, follows=follows, is_correct_now=is_correct_now))
        found = connection.execute(
            statement, {"rows": rows, **(after._asdict() if after else {})}
        ).one_or_none()
        if found is None:
            return Page(0, None, set())
        last = Key(found.student_id, found.test_id, found.question_id)
        return Page(found.rows, last, set(found.hours))

    def hours_of_question(self, connection: Connection, question: str) -> set[datetime] | None:
        """Return the hours of the answers to a question, or None if it does not exist."""
        bound = {"question": question}
        if not connection.execute(text(self._fill(_QUESTION_IS_KNOWN)), bound).scalar_one():
            return None
        return set(connection.execute(text(self._fill(_QUESTION_HOURS)), bound).scalars())

    def moves(
        self, connection: Connection, hours: Iterable[datetime], question: str | None = None
    ) -> Moves:
        """Return how runs over some hours will change `is_correct`, and so accuracies."""
        statement = self._fill(
            _MOVES, judged=self._fill(judged(_ANSWERS_OF_PAIRS)), outcomes=outcomes()
        )
        row = connection.execute(
            text(statement), {"hours": sorted(hours), "question": question}
        ).one()
        return Moves(row.rows, row.students, row.before, row.after)

    def _fill(self, template: str, **more: str) -> str:
        names = {
            "interactions": quoted(self.schema, QUESTION_INTERACTION.name),
            "hours": quoted(self.schema, "student_test_hour"),
            "summaries": quoted(self.schema, TEST_SUMMARY.name),
        }
        return Templates(self.base, names).fill(template, **more)
