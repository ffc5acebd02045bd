"""The queries of an attempt: the students' tests that its window touches, and their base rows.

The rules are those of docs/spec.md §3; docs/architecture.md explains them. The fields of the
statements are in `templates`. The facts are computed from these rows in `mcq_analytics.transforms`,
and stored by `merge`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mcq_analytics.compute.base_columns import ALIASES, id_as_sent
from mcq_analytics.compute.templates import Templates
from mcq_analytics.model.base_tables import BASE_COLUMNS
from mcq_analytics.model.facts import STUDENT_TEST
from mcq_analytics.postgres.identifiers import quoted, quoted_array

# In the order of the key, so that probes and merges go through indexes in one direction.
# Each table is grouped for itself, which several processes can do.
_TOUCHED_NOW = """
    SELECT {a.student_id} AS student_id, {a.test_id} AS test_id
    FROM {answers} a WHERE {answers_in_window} AND {answer_has_keys} GROUP BY 1, 2
    UNION ALL
    SELECT {b.student_id}, {b.test_id}
    FROM {submissions} b WHERE {submissions_in_window} AND {submission_has_keys} GROUP BY 1, 2
"""
_TOUCHED = """
    SELECT student_id, test_id FROM (
        SELECT student_id, test_id FROM ({now}) now
        UNION ALL
        SELECT {h.student_id}, {h.test_id} FROM {hours} h WHERE {hours_in_window} GROUP BY 1, 2
    ) touched GROUP BY 1, 2 ORDER BY 1, 2
"""

# Counts of the window, and of base rows that belong to no fact: in the window, those without an id
# or with ids too long for any row; and all rows that lie in no hour. Of answers also the ids of
# sessions and questions that have several rows. `w` is kept only if these are looked for.
_COUNTS = {
    "answers": """
        WITH w AS (
            SELECT {a.session_id} AS session_id, {a.question_id} AS question_id,
                a.student_id IS NULL OR a.test_id IS NULL OR a.question_id IS NULL AS lacks_keys,
                {answer_fits} AS fits
            FROM {answers} a WHERE {answers_in_window}
        )
        SELECT count(*) AS in_window,
            count(*) FILTER (WHERE lacks_keys) AS without_keys,
            count(*) FILTER (WHERE NOT fits) AS with_too_long_ids,
            (SELECT count(*) FROM {answers} a WHERE a."timestamp" IS NULL
                OR a."timestamp" = 'infinity' OR a."timestamp" = '-infinity') AS without_time,
            ({of_sessions}) AS several_sessions, ({of_questions}) AS several_questions
        FROM w
    """,
    "submissions": """
        SELECT count(*) AS in_window,
            count(*) FILTER (WHERE b.student_id IS NULL OR b.test_id IS NULL) AS without_keys,
            count(*) FILTER (WHERE NOT {submission_fits}) AS with_too_long_ids,
            (SELECT count(*) FROM {submissions} b WHERE b.submit_time IS NULL
                OR b.submit_time = 'infinity' OR b.submit_time = '-infinity') AS without_time
        FROM {submissions} b WHERE {submissions_in_window}
    """,
}

_OF_IDS = {
    "sessions": """
        SELECT count(*) FROM (SELECT DISTINCT session_id FROM w) k
        WHERE 1 < (SELECT count(*) FROM {sessions} s WHERE {session_matches})
    """,
    "questions": """
        SELECT count(*) FROM (SELECT DISTINCT question_id FROM w) k
        WHERE 1 < (SELECT count(*) FROM {questions} q WHERE {question_matches})
    """,
}

# Without an index that leads to an id, its rows are searched by a join.
_OF_IDS_BY_JOIN = {
    "sessions": """
        SELECT count(*) FROM (
            SELECT FROM (SELECT DISTINCT session_id FROM w) k JOIN {sessions} s ON {session_matches}
            GROUP BY k.session_id HAVING count(*) > 1
        ) doubled
    """,
    "questions": """
        SELECT count(*) FROM (
            SELECT FROM (SELECT DISTINCT question_id FROM w) k
            JOIN {questions} q ON {question_matches} GROUP BY k.question_id HAVING count(*) > 1
        ) doubled
    """,
}

# `k` are keys: students' tests, or the sessions or questions of their answers.
_READS_BY_KEY = {
    "answers": "SELECT {answers_as_sent} FROM {keys} k {answers_of_key} WHERE {answer_has_keys}",
    "sessions": """
        SELECT {sessions_as_sent} FROM {keys} k
        CROSS JOIN LATERAL (SELECT * FROM {sessions} s WHERE {session_matches} OFFSET 0) s
    """,
    "questions": """
        SELECT {questions_as_sent} FROM {keys} k
        CROSS JOIN LATERAL (SELECT * FROM {questions} q WHERE {question_matches} OFFSET 0) q
    """,
    "submissions": """
        SELECT {submissions_as_sent} FROM {keys} k {submissions_of_key}
        WHERE {submission_has_keys}
    """,
}

_READS_BY_JOIN = {
    "sessions": """
        SELECT {sessions_as_sent} FROM {keys} k JOIN {sessions} s ON {session_matches}
    """,
    "questions": """
        SELECT {questions_as_sent} FROM {keys} k JOIN {questions} q ON {question_matches}
    """,
}

_READS_OF_RANGES = {
    "answers": "SELECT {answers_as_sent} FROM {answers} a WHERE {answer_has_keys}",
    "sessions": "SELECT {sessions_as_sent} FROM {sessions} s WHERE true",
    "questions": "SELECT {questions_as_sent} FROM {questions} q WHERE true",
    "submissions": "SELECT {submissions_as_sent} FROM {submissions} b WHERE {submission_has_keys}",
}

_IDS_OF_ANSWERS = """
    (SELECT DISTINCT a.{id} FROM {keys} k {{answers_of_key}} WHERE {{answer_has_keys}})
"""

SLICE = "touched_slice"
"""Name of the common table expression that holds the keys of a reader."""

IDS = {"sessions": "session_id", "questions": "question_id"}
"""The base tables that are read for answers, by the id that these name."""


@dataclass(frozen=True)
class Selections(Templates):
    """The statements over given base tables. `names` has the quoted name of `hours`."""

    def touched(self, now: str | None = None) -> str:
        """Select `student_id`, `test_id` of every student's test that the window touches.

        `now` selects those that it touches by the base rows as they are now, if that is known.
        """
        return self.fill(_TOUCHED, now=now or self.touched_now())

    def touched_now(self) -> str:
        """Select those that it touches by the base rows as they are now, some of them twice."""
        return self.fill(_TOUCHED_NOW)

    def counts(self, table: str) -> str:
        """Count the rows of `answers` or `submissions`, and those that belong to no fact.

        Columns: `in_window`; of these, `without_keys` and `with_too_long_ids`; `without_time`. Of
        answers also `several_sessions` and `several_questions`: ids that have several rows.
        """
        return self.fill(
            _COUNTS[table],
            **{f"of_{of}": self._of_ids(of) for of in IDS},
        )

    def _of_ids(self, table: str) -> str:
        """Return the query that counts the ids of `w` with several rows in a base table."""
        if table in self.base.unique:
            return "CAST(0 AS bigint)"
        return self.fill((_OF_IDS if table in self.base.probes else _OF_IDS_BY_JOIN)[table])

    def rows_in_window(self, table: str) -> str:
        """Select the rows of a base table in the window, for the planner to estimate."""
        return self.fill(f"SELECT 1 FROM {{{table}}} {ALIASES[table]} WHERE {{{table}_in_window}}")

    def all_rows(self, table: str) -> str:
        """Select all rows of a base table, for the planner to estimate."""
        return self.fill(f"SELECT 1 FROM {{{table}}}")

    def read(self, table: str, keys: str) -> str:
        """Select the rows of a base table by keys, in the form in which they are sent to Spark.

        `keys` is a table or query: of students' tests for answers and submissions, of `IDS` for
        the others. Columns: those of docs/spec.md §1.
        """
        by_join = table in _READS_BY_JOIN and table not in self.base.probes
        template = (_READS_BY_JOIN if by_join else _READS_BY_KEY)[table]
        return self.fill(template, keys=keys)

    def read_for_answers(self, table: str, keys: str) -> str:
        """Select the rows of `questions` or `sessions` for the answers of students' tests."""
        ids = self.fill(_IDS_OF_ANSWERS.format(id=IDS[table], keys=keys))
        return self.read(table, ids)

    def read_range(self, table: str) -> str:
        """Select the rows of a base table, to be continued by a condition on their addresses."""
        return self.fill(_READS_OF_RANGES[table])

    def keys_as_sent(self) -> str:
        """Return the select list of a table of students' tests, in the form sent to Spark."""
        return ", ".join(
            f"{id_as_sent(quoted(name), self.base.student_test_type(name))} AS {quoted(name)}"
            for name in STUDENT_TEST
        )

    def beginning_with_keys(self, table: str) -> str:
        """Return the statement whose only value begins a query that reads the keys from `SLICE`.

        The keys are the students' tests in a table, as arrays, which PostgreSQL quotes.
        """
        arrays = " || ', ' || ".join(
            f"quote_literal(coalesce(CAST(array_agg({quoted(name)}) AS text), '{{}}')) "
            f"|| '::{self.base.student_test_type(name).value}[]'"
            for name in STUDENT_TEST
        )
        names = ", ".join(map(quoted, STUDENT_TEST))
        return (
            f"SELECT 'WITH {SLICE} ({names}) AS (SELECT * FROM unnest(' || {arrays} || '))' "
            f"FROM {table}"
        )

    def given_ids(self, table: str, ids: Iterable[object]) -> str:
        """Return a query over ids of `IDS` that came back from Arrow as sent."""
        column = IDS[table]
        sql_type = self.base.id_type("answers", column).value
        return (
            f"(SELECT * FROM unnest(CAST({quoted_array(ids)} AS {sql_type}[])) "
            f"AS given ({quoted(column)}))"
        )


def address(table: str) -> str:
    """Return the address (`ctid`) of a row in the statements of `Selections.read_range`."""
    assert table in BASE_COLUMNS
    return f"{ALIASES[table]}.ctid"
