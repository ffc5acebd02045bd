"""The rows that span students, from what is stored of each: `total_questions`, and the funnel.

The statements; `merge` executes them, after the rows of students' tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mcq_analytics.model.facts import SUBMISSION_COUNTS

# One probe per question of a test, however many students it has (a loose index scan).
TOTALS = """
    WITH RECURSIVE question (test_id, question_id) AS (
        SELECT t.test_id, q.question_id FROM (SELECT DISTINCT test_id FROM {touched}) t
        CROSS JOIN LATERAL (
            SELECT f.question_id FROM {interactions} f WHERE f.test_id = t.test_id
            ORDER BY f.question_id LIMIT 1
        ) q
        UNION ALL
        SELECT p.test_id, q.question_id FROM question p
        CROSS JOIN LATERAL (
            SELECT f.question_id FROM {interactions} f
            WHERE f.test_id = p.test_id AND f.question_id > p.question_id
            ORDER BY f.question_id LIMIT 1
        ) q
    )
    SELECT test_id, count(*) AS total_questions FROM question GROUP BY test_id
"""

# The index on test and total finds just the rows that have another one.
OTHER_TOTALS = """
    UPDATE {summaries} f SET total_questions = t.total_questions, updated_at = now()
    FROM totals t WHERE f.test_id = t.test_id AND f.total_questions {differs} t.total_questions
"""

# By the difference of what students' tests add: flat, however many students a test has. A test
# without a row is new, or somebody has deleted its row: it is summed up.
MOVED = """
    CREATE TEMPORARY TABLE funnels ON COMMIT DROP AS
    WITH moved AS MATERIALIZED (SELECT test_id, {net} FROM {difference} GROUP BY test_id)
    SELECT d.test_id, {moved} FROM moved d
    CROSS JOIN LATERAL (SELECT * FROM {funnel} f WHERE f.test_id = d.test_id OFFSET 0) f
    UNION ALL
    SELECT d.test_id, {summed} FROM moved d LEFT JOIN {submissions} s ON s.test_id = d.test_id
    WHERE 0 = (SELECT count(*) FROM {funnel} f WHERE f.test_id = d.test_id)
    GROUP BY d.test_id
"""

# No row of the funnel can be so, unless somebody has changed it before.
IS_IMPOSSIBLE = """
    SELECT EXISTS (
        SELECT 1 FROM funnels WHERE completed_submissions NOT BETWEEN 0 AND submissions
            OR timed_submissions NOT BETWEEN 0 AND submissions OR timed_microseconds < 0
    )
"""

# From all that is stored: it costs all students of the tests, and mends what was wrong.
SUMMED = """
    CREATE TEMPORARY TABLE funnels ON COMMIT DROP AS
    SELECT t.test_id, {summed}
    FROM (SELECT DISTINCT test_id FROM {touched}) t
    LEFT JOIN {submissions} s ON s.test_id = t.test_id GROUP BY t.test_id
"""

FUNNELS = """
    SELECT test_id, submissions AS total_submissions, completed_submissions,
        submissions - completed_submissions AS incomplete_submissions,
        CAST(100 AS float8) * completed_submissions / submissions AS completion_rate,
        CAST(timed_microseconds AS float8) / nullif(timed_submissions, 0) / 1000000
            AS avg_submit_time,
        timed_submissions, timed_microseconds
    FROM funnels WHERE submissions > 0
"""

_COUNTS = tuple(column.name for column in SUBMISSION_COUNTS)
_OF_TEST = (
    "total_submissions",
    "completed_submissions",
    "timed_submissions",
    "timed_microseconds",
)
"""The columns of the funnel that are sums of `SUBMISSION_COUNTS`, in their order."""


def sums() -> Mapping[str, str]:
    """Return the fields of `MOVED` and `SUMMED` with the sums of `SUBMISSION_COUNTS`."""
    return {
        "summed": _each("coalesce(sum(s.{0}), 0)", _COUNTS),
        "net": ", ".join(
            f"sum(coalesce({name}, 0) - coalesce(old_{name}, 0)) AS {name}" for name in _COUNTS
        ),
        "moved": _each("f.{1} + d.{0}", _COUNTS),
    }


def _each(expression: str, names: Sequence[str]) -> str:
    """Return a select list of sums in the types of their columns: sums of integers are numeric."""
    return ", ".join(
        f"CAST({expression.format(name, of_test)} AS {column.type.value}) AS {name}"
        for name, of_test, column in zip(names, _OF_TEST, SUBMISSION_COUNTS, strict=True)
    )
