"""Which rows a run reads, as SQL: those that its window touches, with all their history.

The rules are those of SPEC section 3, and docs/architecture.md explains them. What is computed from
the rows is in `mcq_analytics.transforms`; how computed rows are stored, in `merge`.

The statements are templates. Their fields are quoted names, and expressions that depend on the
types which the base tables have; values are bound (`:window_start`, `:window_end`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy.dialects import postgresql

from mcq_analytics.facts import QUESTION_INTERACTION, TEST_FUNNEL, TEST_SUMMARY, Fact, IdType
from mcq_analytics.storage.base_tables import BASE_COLUMNS, BaseTables, Role

TEST_QUESTIONS = "test_questions"
"""Staging table of `test_summary_fact`: the validly answered questions of the touched tests."""

_HAS_KEYS = {
    "answers": """isfinite(a."timestamp") AND a.student_id IS NOT NULL
        AND a.test_id IS NOT NULL AND a.question_id IS NOT NULL""",
    "submissions": """isfinite(b.submit_time) AND b.student_id IS NOT NULL
        AND b.test_id IS NOT NULL""",
}

# One valid answer stands for each question: the hour of that answer is remembered, so that a run
# of it looks again whether the question still counts.
_TEST_QUESTIONS = """
    WITH tests AS (
        SELECT a.test_id FROM {answers} a WHERE {answers_in_window} AND {answer_has_keys}
        UNION
        SELECT h.test_id FROM {hours} h WHERE {hours_in_window}
    )
    SELECT DISTINCT ON (a.test_id, a.question_id)
        a.test_id, a.question_id, a.student_id, {answer_time} AS "timestamp"
    FROM tests t
    JOIN {answers} a ON a.test_id = t.test_id
    LEFT JOIN {sessions} s ON s.session_id = a.session_id
    WHERE {answer_has_keys} AND (s.expiry_time IS NULL OR {answer_time} <= {expiry_time})
"""

_TOUCHED = {
    QUESTION_INTERACTION.name: """
        SELECT a.student_id, a.test_id, a.question_id
        FROM {answers} a WHERE {answers_in_window} AND {answer_has_keys}
        UNION
        SELECT h.student_id, h.test_id, h.question_id FROM {hours} h WHERE {hours_in_window}
    """,
    # A test whose number of questions has changed touches all its students.
    TEST_SUMMARY.name: """
        WITH active AS (
            SELECT a.student_id, a.test_id
            FROM {answers} a WHERE {answers_in_window} AND {answer_has_keys}
            UNION
            SELECT h.student_id, h.test_id FROM {hours} h WHERE {hours_in_window}
        ), totals AS (
            SELECT t.test_id, count(q.question_id) AS total_questions
            FROM (SELECT DISTINCT test_id FROM active) t
            LEFT JOIN {test_questions} q ON q.test_id = t.test_id
            GROUP BY t.test_id
        )
        SELECT student_id, test_id FROM active
        UNION
        SELECT f.student_id, f.test_id
        FROM totals t
        JOIN {fact} f ON f.test_id = t.test_id AND f.total_questions <> t.total_questions
    """,
    # A test without submissions comes once, with a null student: its row must go.
    TEST_FUNNEL.name: """
        WITH tests AS (
            SELECT a.test_id FROM {answers} a WHERE {answers_in_window} AND {answer_has_keys}
            UNION
            SELECT b.test_id FROM {submissions} b
            WHERE {submissions_in_window} AND {submission_has_keys}
            UNION
            SELECT h.test_id FROM {hours} h WHERE {hours_in_window}
        )
        SELECT DISTINCT t.test_id, b.student_id
        FROM tests t
        LEFT JOIN {submissions} b ON b.test_id = t.test_id AND {submission_has_keys}
    """,
}

# Rows that belong to no fact: those of the window without an id, and those of no hour at all.
_LEFT_OUT = {
    "answers": """
        SELECT
            (SELECT count(*) FROM {answers} a WHERE {answers_in_window} AND
                (a.student_id IS NULL OR a.test_id IS NULL OR a.question_id IS NULL))
                AS without_keys,
            (SELECT count(*) FROM {answers} a WHERE a."timestamp" IS NULL
                OR a."timestamp" = 'infinity' OR a."timestamp" = '-infinity') AS without_time
    """,
    "submissions": """
        SELECT
            (SELECT count(*) FROM {submissions} b WHERE {submissions_in_window} AND
                (b.student_id IS NULL OR b.test_id IS NULL)) AS without_keys,
            (SELECT count(*) FROM {submissions} b WHERE b.submit_time IS NULL
                OR b.submit_time = 'infinity' OR b.submit_time = '-infinity') AS without_time
    """,
}

# `k` is a slice of the touched keys. A session that never expires may as well be missing.
_READS = {
    "answers": """
        SELECT {answer_columns}
        FROM {slice} k JOIN {answers} a ON {answer_matches} WHERE {answer_has_keys}
    """,
    "sessions": """
        SELECT DISTINCT {session_columns}
        FROM {slice} k JOIN {answers} a ON {answer_matches}
        JOIN {sessions} s ON s.session_id = a.session_id
        WHERE {answer_has_keys} AND s.expiry_time IS NOT NULL
    """,
    "questions": """
        SELECT DISTINCT {question_columns}
        FROM {slice} k JOIN {answers} a ON {answer_matches}
        JOIN {questions} q ON q.question_id = a.question_id
        WHERE {answer_has_keys}
    """,
    "submissions": """
        SELECT {submission_columns}
        FROM {slice} k JOIN {submissions} b ON {submission_matches} WHERE {submission_has_keys}
    """,
    TEST_QUESTIONS: "SELECT k.test_id, k.question_id FROM {slice} k",
}

_ALIASES = {"answers": "a", "questions": "q", "sessions": "s", "submissions": "b"}

_preparer = postgresql.dialect().identifier_preparer


def quoted(*names: str) -> str:
    """Return a name, qualified where several parts are given, quoted as PostgreSQL needs it."""
    return ".".join(_preparer.quote(name) for name in names)


@dataclass(frozen=True)
class Selections:
    """The statements of one fact over given base tables.

    `hours`, `fact`, `test_questions` are quoted names of tables of ours.
    """

    fact: Fact
    base: BaseTables
    names: Mapping[str, str]

    def test_questions(self) -> str:
        """Select `test_id`, `question_id`, and `student_id`, `timestamp` of one valid answer."""
        return self.fill(_TEST_QUESTIONS)

    def touched(self) -> str:
        """Select the columns of the fact's `split_key` for all that the window touches."""
        return self.fill(_TOUCHED[self.fact.name])

    def left_out(self, table: str) -> str:
        """Select `without_keys` and `without_time`, counts of rows that belong to no fact."""
        return self.fill(_LEFT_OUT[table])

    def rows_in_window(self, table: str) -> str:
        """Select the rows of `answers` or `submissions` in the window, for its estimate."""
        alias = _ALIASES[table]
        return self.fill(f"SELECT 1 FROM {{{table}}} {alias} WHERE {{{table}_in_window}}")

    def read(self, table: str, slice_name: str) -> str:
        """Select the rows of an input that belong to the keys in the table `slice_name`.

        The columns are those of SPEC section 1; ids and texts are as `transport` has them.
        """
        return self.fill(_READS[table], slice=slice_name)

    def key_columns(self, table: str) -> str:
        """Return the select list that brings the keys of a staged table as they travel."""
        columns = ("test_id", "question_id") if table == TEST_QUESTIONS else self.fact.split_key
        return ", ".join(
            _id_as_it_travels(quoted(column), self._key_type(column)) + f" AS {quoted(column)}"
            for column in columns
        )

    def fill(self, template: str, **more: str) -> str:
        """Return a template of these tables with its fields filled in, `more` fields too."""
        return template.format(**self._fields(), **more)

    def _fields(self) -> dict[str, str]:
        answers, submissions = self.base["answers"], self.base["submissions"]
        return {
            **{
                name: quoted(table.schema or "public", name)
                for name, table in self.base.tables.items()
            },
            **self.names,
            "answer_has_keys": _HAS_KEYS["answers"],
            "submission_has_keys": _HAS_KEYS["submissions"],
            "answers_in_window": _in_window('a."timestamp"', _zoned(answers.c.timestamp.type)),
            "submissions_in_window": _in_window(
                "b.submit_time", _zoned(submissions.c.submit_time.type)
            ),
            "hour_start": _bare("w.hour", _zoned(answers.c.timestamp.type)),
            "hour_end": _bare("w.hour + interval '1 hour'", _zoned(answers.c.timestamp.type)),
            "hours_in_window": _in_window("h.hour", zoned=True),
            "answer_time": self._time("answers", "timestamp"),
            "expiry_time": self._time("sessions", "expiry_time"),
            "submit_time": self._time("submissions", "submit_time"),
            "answer_columns": self._columns("answers"),
            "session_columns": self._columns("sessions"),
            "question_columns": self._columns("questions"),
            "submission_columns": self._columns("submissions"),
            "answer_matches": self._matches("a", "answers"),
            "submission_matches": self._matches("b", "submissions"),
        }

    def _columns(self, table: str) -> str:
        return ", ".join(
            f"{self._as_it_travels(table, column, role)} AS {quoted(column)}"
            for column, role in BASE_COLUMNS[table].items()
        )

    def _as_it_travels(self, table: str, column: str, role: Role) -> str:
        name = f"{_ALIASES[table]}.{quoted(column)}"
        if role is Role.TEXT:
            return f"CAST({name} AS text)"
        if role is Role.ID:
            id_type = self.base.id_type(table, column)
            if column == "answer_id" and id_type is IdType.TEXT:
                # Only its order matters, and that is the collation's, which Spark does not know.
                return f"dense_rank() OVER (ORDER BY {name})"
            return _id_as_it_travels(name, id_type)
        if column == "expiry_time":
            # Spark has no infinite times: never is null, and ever is the first moment there is.
            earliest = "CAST('4714-11-24 00:00:00+00 BC' AS timestamptz)"
            time = self._time(table, column)
            return f"CASE WHEN isfinite({time}) THEN {time} WHEN {time} < now() THEN {earliest} END"
        return self._time(table, column)

    def _time(self, table: str, column: str) -> str:
        name = f"{_ALIASES[table]}.{quoted(column)}"
        return name if _zoned(self.base[table].c[column].type) else f"({name} AT TIME ZONE 'UTC')"

    def _matches(self, alias: str, table: str) -> str:
        """Join a base table to the keys, which came as they travel."""
        return " AND ".join(
            f"{alias}.{quoted(column)} = "
            + (
                f"CAST(k.{quoted(column)} AS uuid)"
                if self._key_type(column) is IdType.UUID
                else f"k.{quoted(column)}"
            )
            for column in self.fact.split_key
            if column in BASE_COLUMNS[table]
        )

    def _key_type(self, column: str) -> IdType:
        return self.base.id_type(
            self.fact.key_table if column in BASE_COLUMNS[self.fact.key_table] else "answers",
            column,
        )


def _id_as_it_travels(name: str, id_type: IdType) -> str:
    return f"CAST({name} AS text)" if id_type is IdType.UUID else name


def _zoned(sql_type: object) -> bool:
    return bool(getattr(sql_type, "timezone", False))


def _in_window(column: str, zoned: bool) -> str:
    """Compare the bare column, so that an index on it serves."""
    start, end = (
        _bare(f"CAST(:window_{bound} AS timestamptz)", zoned) for bound in ("start", "end")
    )
    return f"({column} >= {start} AND {column} < {end})"


def _bare(moment: str, zoned: bool) -> str:
    """Return a timestamptz expression of the type that a base table's time has."""
    return moment if zoned else f"({moment} AT TIME ZONE 'UTC')"
