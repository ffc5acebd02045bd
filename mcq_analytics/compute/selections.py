"""The queries of an attempt: the keys that its window touches, and all base rows of these keys.

The rules are those of docs/spec.md §3; docs/architecture.md explains them. The fields of the
statements are in `templates`. The facts are computed from these rows in `mcq_analytics.transforms`,
and stored by `merge`.
"""

from __future__ import annotations

from dataclasses import dataclass

from mcq_analytics.compute.base_columns import ALIASES, id_as_sent
from mcq_analytics.compute.judged_answers import judged
from mcq_analytics.compute.templates import Templates
from mcq_analytics.model.facts import QUESTION_INTERACTION, TEST_FUNNEL, TEST_SUMMARY
from mcq_analytics.postgres.identifiers import quoted

TEST_QUESTIONS = "test_questions"
"""Staging table of `test_summary_fact`: questions of the touched tests with a valid answer."""

# One valid answer stands for each question. Its hour is stored, so that a run of that hour checks
# again whether the question still counts.
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
    # If a test's number of questions has changed, all its students are touched.
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
    # A test without submissions is listed once, with a null student: its row must go.
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

# Base rows that belong to no fact: in the window, those without an id or with ids too long for any
# row; and all rows that lie in no hour.
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
        SELECT {answers_as_sent}
        FROM {slice} k JOIN {answers} a ON {answer_matches} WHERE {answer_has_keys}
    """,
    "sessions": """
        SELECT DISTINCT {sessions_as_sent}
        FROM (
            SELECT DISTINCT {a.session_id} AS session_id
            FROM {slice} k JOIN {answers} a ON {answer_matches} WHERE {answer_has_keys}
        ) c JOIN {sessions} s ON s.session_id = c.session_id
    """,
    "questions": """
        SELECT DISTINCT {questions_as_sent}
        FROM (
            SELECT DISTINCT {a.question_id} AS question_id
            FROM {slice} k JOIN {answers} a ON {answer_matches} WHERE {answer_has_keys}
        ) c JOIN {questions} q ON q.question_id = c.question_id
    """,
    "submissions": """
        SELECT {submissions_as_sent}
        FROM {slice} k JOIN {submissions} b ON {submission_matches} WHERE {submission_has_keys}
    """,
    TEST_QUESTIONS: "SELECT k.test_id, k.question_id FROM {slice} k",
}


@dataclass(frozen=True)
class Selections(Templates):
    """The statements of one fact over given base tables.

    `names` has the quoted names of `hours`, `fact` and `test_questions`.
    """

    def test_questions(self) -> str:
        """Select `test_id`, `question_id`, and `student_id`, `timestamp` of one valid answer."""
        return self.fill(_TEST_QUESTIONS)

    def touched(self) -> str:
        """Select the columns of the fact's `split_key` for every key that the window touches."""
        return self.fill(_TOUCHED[self.fact.name])

    def left_out(self, table: str) -> str:
        """Count the rows of `answers` or `submissions` that belong to no fact.

        Columns: `without_keys`, `with_too_long_ids` and `without_time`.
        """
        return self.fill(_LEFT_OUT[table])

    def duplicates(self, table: str) -> str:
        """Count the ids of `questions` or `sessions` in the window that have several rows."""
        column = {"questions": "question_id", "sessions": "session_id"}[table]
        return self.fill(_DUPLICATES.replace("ID", column).replace("TABLE", table))

    def rows_in_window(self, table: str) -> str:
        """Select the rows of a base table in the window, for the planner to estimate."""
        return self.fill(f"SELECT 1 FROM {{{table}}} {ALIASES[table]} WHERE {{{table}_in_window}}")

    def read(self, table: str, slice_name: str) -> str:
        """Select the rows of an input that belong to the keys in the table `slice_name`.

        Columns: those of docs/spec.md §1, in the form in which they are sent to Spark.
        """
        return self.fill(_READS[table], slice=slice_name)

    def key_columns(self, table: str) -> str:
        """Return the select list of a staging table of keys, in the form sent to Spark."""
        columns = ("test_id", "question_id") if table == TEST_QUESTIONS else self.fact.split_key
        return ", ".join(
            f"{id_as_sent(quoted(column), self.key_type(column))} AS {quoted(column)}"
            for column in columns
        )
