"""Which rows a run reads, as SQL: those that its window touches, with all their history.

The rules are those of SPEC section 3, and docs/architecture.md explains them. What is computed from
the rows is in `mcq_analytics.transforms`; how computed rows are stored, in `merge`.

The statements are templates. Their fields are quoted names, and expressions that depend on the
types which the base tables have; values are bound (`:window_start`, `:window_end`).

A column whose table is searched is written bare (`a.test_id`), so that an index on it serves. One
that is handed on is written as a field (`{a.test_id}`): whatever collation the column has, the
value then has the database's own, and can be compared with that of any other table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace

from sqlalchemy.dialects import postgresql

from mcq_analytics.compute.judged_answers import ANSWER_KEY, SESSION_EXPIRY, judged
from mcq_analytics.model.base_tables import BASE_COLUMNS, Role
from mcq_analytics.model.facts import (
    KEY_MEANINGS,
    QUESTION_INTERACTION,
    TEST_FUNNEL,
    TEST_SUMMARY,
    Fact,
    IdType,
)
from mcq_analytics.postgres.inspection import BaseTables

TEST_QUESTIONS = "test_questions"
"""Staging table of `test_summary_fact`: the validly answered questions of the touched tests."""

LONGEST_KEY = 2_600
"""Bytes of the ids of a row, together, that an index entry of PostgreSQL holds for certain: its
limit is 2,704 bytes, less the entry's header, an hour, and what each id is padded with."""

EARLIEST = "CAST('0001-01-01 00:00:00+00' AS timestamptz)"
LATEST = "CAST('9999-12-31 23:59:59.999999+00' AS timestamptz)"
"""The times that PostgreSQL, Arrow, Spark and Python all hold. Those beyond are brought to them."""

_EVER = "CAST('0001-12-31 00:00:00+00 BC' AS timestamptz)"
"""Before every answer: the expiry of a session that had always expired."""

# The planner has to see that nearly all rows have keys: it takes `isfinite`, or a comparison of
# what it cannot know, for a third of them, and a few such thirds for a single row.
_HAS_KEYS = {
    "answers": """(a."timestamp" <> 'infinity' AND a."timestamp" <> '-infinity'
        AND a.student_id IS NOT NULL AND a.test_id IS NOT NULL AND a.question_id IS NOT NULL
        AND {answer_fits})""",
    "submissions": """(b.submit_time <> 'infinity' AND b.submit_time <> '-infinity'
        AND b.student_id IS NOT NULL AND b.test_id IS NOT NULL AND {submission_fits})""",
}

# One valid answer stands for each question: the hour of that answer is remembered, so that a run
# of it looks again whether the question still counts.
_TEST_QUESTIONS = (
    """
    WITH tests AS (
        SELECT {a.test_id} AS test_id FROM {answers} a
        WHERE {answers_in_window} AND {answer_has_keys}
        UNION
        SELECT {h.test_id} FROM {hours} h WHERE {hours_in_window}
    ), """
    + judged(
        """
        SELECT {answer_columns} FROM tests t JOIN {answers} a ON a.test_id = t.test_id
        WHERE {answer_has_keys}
    """
    )
    + """
    SELECT DISTINCT ON (test_id, question_id) test_id, question_id, student_id, "timestamp"
    FROM judged WHERE is_valid
"""
)

_TOUCHED = {
    QUESTION_INTERACTION.name: """
        SELECT {a.student_id} AS student_id, {a.test_id} AS test_id, {a.question_id} AS question_id
        FROM {answers} a WHERE {answers_in_window} AND {answer_has_keys}
        UNION
        SELECT {h.student_id}, {h.test_id}, {h.question_id} FROM {hours} h WHERE {hours_in_window}
    """,
    # A test whose number of questions has changed touches all its students.
    TEST_SUMMARY.name: """
        WITH active AS (
            SELECT {a.student_id} AS student_id, {a.test_id} AS test_id
            FROM {answers} a WHERE {answers_in_window} AND {answer_has_keys}
            UNION
            SELECT {h.student_id}, {h.test_id} FROM {hours} h WHERE {hours_in_window}
        ), totals AS (
            SELECT t.test_id, count(q.question_id) AS total_questions
            FROM (SELECT DISTINCT test_id FROM active) t
            LEFT JOIN {test_questions} q ON q.test_id = t.test_id
            GROUP BY t.test_id
        )
        SELECT student_id, test_id FROM active
        UNION
        SELECT {f.student_id}, {f.test_id}
        FROM totals t
        JOIN {fact} f ON f.test_id = t.test_id AND f.total_questions <> t.total_questions
    """,
    # A test without submissions comes once, with a null student: its row must go.
    TEST_FUNNEL.name: """
        WITH tests AS (
            SELECT {a.test_id} AS test_id FROM {answers} a
            WHERE {answers_in_window} AND {answer_has_keys}
            UNION
            SELECT {b.test_id} FROM {submissions} b
            WHERE {submissions_in_window} AND {submission_has_keys}
            UNION
            SELECT {h.test_id} FROM {hours} h WHERE {hours_in_window}
        )
        SELECT DISTINCT t.test_id, {b.student_id} AS student_id
        FROM tests t
        LEFT JOIN {submissions} b ON b.test_id = t.test_id AND {submission_has_keys}
    """,
}

# Rows that belong to no fact: those of the window without an id, or with ids that no row can hold;
# and those of no hour at all.
_LEFT_OUT = {
    "answers": """
        SELECT count(*) FILTER (WHERE a.student_id IS NULL OR a.test_id IS NULL
                OR a.question_id IS NULL) AS without_keys,
            count(*) FILTER (WHERE NOT {answer_fits}) AS with_too_long_ids,
            (SELECT count(*) FROM {answers} a WHERE a."timestamp" IS NULL
                OR a."timestamp" = 'infinity' OR a."timestamp" = '-infinity') AS without_time
        FROM {answers} a WHERE {answers_in_window}
    """,
    "submissions": """
        SELECT count(*) FILTER (WHERE b.student_id IS NULL OR b.test_id IS NULL) AS without_keys,
            count(*) FILTER (WHERE NOT {submission_fits}) AS with_too_long_ids,
            (SELECT count(*) FROM {submissions} b WHERE b.submit_time IS NULL
                OR b.submit_time = 'infinity' OR b.submit_time = '-infinity') AS without_time
        FROM {submissions} b WHERE {submissions_in_window}
    """,
}

_DUPLICATES = """
    SELECT count(*) FROM (
        SELECT FROM (SELECT DISTINCT {a.ID} AS id FROM {answers} a WHERE {answers_in_window}) w
        JOIN {TABLE} d ON d.ID = w.id
        GROUP BY w.id HAVING count(*) > 1
    ) doubled
"""

# `k` is a slice of the touched keys.
_READS = {
    "answers": """
        SELECT {answers_as_they_travel}
        FROM {slice} k JOIN {answers} a ON {answer_matches} WHERE {answer_has_keys}
    """,
    "sessions": """
        SELECT DISTINCT {sessions_as_they_travel}
        FROM (
            SELECT DISTINCT {a.session_id} AS session_id
            FROM {slice} k JOIN {answers} a ON {answer_matches} WHERE {answer_has_keys}
        ) c JOIN {sessions} s ON s.session_id = c.session_id
    """,
    "questions": """
        SELECT DISTINCT {questions_as_they_travel}
        FROM (
            SELECT DISTINCT {a.question_id} AS question_id
            FROM {slice} k JOIN {answers} a ON {answer_matches} WHERE {answer_has_keys}
        ) c JOIN {questions} q ON q.question_id = c.question_id
    """,
    "submissions": """
        SELECT {submissions_as_they_travel}
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
        """Select counts of rows that belong to no fact.

        They are `without_keys`, `with_too_long_ids` and `without_time`.
        """
        return self.fill(_LEFT_OUT[table])

    def duplicates(self, table: str) -> str:
        """Count the ids of `questions` or `sessions` in the window that have several rows."""
        column = {"questions": "question_id", "sessions": "session_id"}[table]
        return self.fill(_DUPLICATES.replace("ID", column).replace("TABLE", table))

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

    def _fields(self) -> dict[str, object]:
        answers, submissions = self.base["answers"], self.base["submissions"]
        fits = {
            "answer_fits": self._fits("a", "answers", QUESTION_INTERACTION.key),
            "submission_fits": self._fits("b", "submissions", ("student_id", "test_id")),
        }
        expiry_time = self._expiry_time()
        hours = self._handed_on("h", None)
        return {
            **{
                name: quoted(table.schema or "public", name)
                for name, table in self.base.tables.items()
            },
            **self.names,
            "earliest": EARLIEST,
            "latest": LATEST,
            **fits,
            "a": self._handed_on("a", "answers"),
            "b": self._handed_on("b", "submissions"),
            "h": hours,
            "hours_key": ", ".join(getattr(hours, name) for name in self.fact.key),
            "f": self._handed_on("f", None),
            "answer_has_keys": _HAS_KEYS["answers"].format(**fits),
            "submission_has_keys": _HAS_KEYS["submissions"].format(**fits),
            "answers_in_window": _in_window('a."timestamp"', _zoned(answers.c.timestamp.type)),
            "submissions_in_window": _in_window(
                "b.submit_time", _zoned(submissions.c.submit_time.type)
            ),
            "hour_start": _bare("w.hour", _zoned(answers.c.timestamp.type)),
            "hour_end": _bare("w.hour + interval '1 hour'", _zoned(answers.c.timestamp.type)),
            "hours_in_window": _in_window("h.hour", zoned=True),
            "answer_time": self._time("answers", "timestamp"),
            "submit_time": self._time("submissions", "submit_time"),
            "session_expiry": SESSION_EXPIRY.format(expiry_time=expiry_time),
            "answer_key": ANSWER_KEY,
            "answer_columns": self._columns("answers"),
            "submission_columns": self._columns("submissions"),
            **{
                f"{table}_as_they_travel": self._columns(table, travelling=True)
                for table in BASE_COLUMNS
            },
            "answer_matches": self._matches("a", "answers"),
            "submission_matches": self._matches("b", "submissions"),
        }

    def _columns(self, table: str, *, travelling: bool = False) -> str:
        """Return the select list of a base table: its rows as all that follows takes them.

        Times are timestamptz within the range that all sides hold, options and statuses are text.
        Texts that are put in order have the collation "C", the bytes; a uuid travels as text.
        """
        return ", ".join(
            f"{self._value(table, column, role, travelling=travelling)} AS {quoted(column)}"
            for column, role in BASE_COLUMNS[table].items()
        )

    def _value(self, table: str, column: str, role: Role, *, travelling: bool) -> str:
        name = f"{_ALIASES[table]}.{quoted(column)}"
        if role is Role.TEXT:
            return f'CAST({name} AS text) COLLATE "C"'
        if column == "expiry_time":
            return self._expiry_time()
        if role is Role.TIME:
            return self._time(table, column)
        id_type = self.base.id_type(table, column)
        if column == "answer_id" and id_type is IdType.TEXT:
            return f'{name} COLLATE "C"'
        return _id_as_it_travels(name, id_type) if travelling else _handed_on(name, id_type)

    def _time(self, table: str, column: str) -> str:
        """Return a time as timestamptz, within the range that all sides hold; it is not null."""
        return f"least(greatest({self._moment(table, column)}, {EARLIEST}), {LATEST})"

    def _expiry_time(self) -> str:
        """Return the expiry of a row of `sessions`, null for never: Spark has no infinite times."""
        moment = self._moment("sessions", "expiry_time")
        return (
            f"CASE WHEN {moment} = '-infinity' THEN {_EVER} "
            f"WHEN {moment} < 'infinity' THEN {self._time('sessions', 'expiry_time')} END"
        )

    def _moment(self, table: str, column: str) -> str:
        name = f"{_ALIASES[table]}.{quoted(column)}"
        return name if _zoned(self.base[table].c[column].type) else f"({name} AT TIME ZONE 'UTC')"

    def _handed_on(self, alias: str, table: str | None) -> SimpleNamespace:
        """Return the ids of a base table, or of a table of ours, as they are handed on."""
        columns = BASE_COLUMNS[table] if table else dict.fromkeys(KEY_MEANINGS, Role.ID)
        return SimpleNamespace(
            **{
                column: _handed_on(
                    f"{alias}.{quoted(column)}",
                    self.base.id_type(table, column) if table else self._key_type(column),
                )
                for column, role in columns.items()
                if role is Role.ID
            }
        )

    def _fits(self, alias: str, table: str, columns: tuple[str, ...]) -> str:
        """Return whether a key of these ids fits into an index entry; null ids count as fitting."""
        lengths = [
            f"coalesce(octet_length({alias}.{quoted(column)}), 0)"
            for column in columns
            if self.base.id_type(table, column) is IdType.TEXT
        ]
        if not lengths:
            return "true"
        return f"(CASE WHEN {' + '.join(lengths)} <= {LONGEST_KEY} THEN 1 END IS NOT NULL)"

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


def _handed_on(name: str, id_type: IdType) -> str:
    return f'{name} COLLATE "default"' if id_type is IdType.TEXT else name


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
