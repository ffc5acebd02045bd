"""Overviews: a few sentences for people on the fact rows that a window touches.

Dagster's UI shows them with each run; nothing is computed from them.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, RowMapping, text

from mcq_analytics.compute.merge import Staged
from mcq_analytics.model.facts import QUESTION_INTERACTION, TEST_FUNNEL, TEST_SUMMARY
from mcq_analytics.spark.parts import INTERACTIONS, SUMMARIES, TASK

TESTS_NAMED = 10
NOBODY = "Nobody answered."

_INTERACTIONS = """
    SELECT count(*) AS results, coalesce(sum(answer_count), 0) AS answers,
        100.0 * avg(CAST(is_correct AS int)) AS correct,
        100.0 * avg(CAST(revisited AS int)) AS revisited
    FROM {staged} s WHERE s.{task} = ANY(:tasks)
"""

# `totals` is a temporary table of the merge; uuids are staged as text.
_SUMMARIES = """
    SELECT count(*) AS results, count(DISTINCT student_id) AS students,
        count(DISTINCT s.test_id) AS tests, avg(accuracy_percent) AS accuracy,
        avg(100.0 * questions_attempted / total_questions) AS attempted,
        avg(time_spent) / 60 AS minutes
    FROM {staged} s
    LEFT JOIN totals t ON CAST(t.test_id AS text) = CAST(s.test_id AS text)
    WHERE s.{task} = ANY(:tasks)
"""

_FUNNELS = """
    SELECT f.test_id, total_submissions, completion_rate, avg_submit_time / 60 AS minutes,
        count(*) OVER () AS tests
    FROM (SELECT DISTINCT test_id FROM {touched}) t
    CROSS JOIN LATERAL (SELECT * FROM {funnel} f WHERE f.test_id = t.test_id OFFSET 0) f
    ORDER BY total_submissions DESC, f.test_id LIMIT :named
"""


def overviews(
    connection: Connection, staged: Staged, funnel: str
) -> tuple[dict[str, str], dict[str, int]]:
    """Return Markdown on the touched rows by fact, and their numbers by fact.

    It follows a merge in the same transaction. `funnel` is a quoted name.
    """
    bound = {"tasks": list(staged.tasks)}

    def row(template: str, part: str) -> RowMapping:
        statement = template.format(staged=staged.parts[part], task=TASK)
        return connection.execute(text(statement), bound).mappings().one()

    tests = (
        connection.execute(
            text(_FUNNELS.format(touched=staged.touched, funnel=funnel)), {"named": TESTS_NAMED}
        )
        .mappings()
        .all()
    )
    interactions, results = row(_INTERACTIONS, INTERACTIONS), row(_SUMMARIES, SUMMARIES)
    found = {
        QUESTION_INTERACTION.name: _answers(results, interactions),
        TEST_SUMMARY.name: _results(results),
        TEST_FUNNEL.name: _tests(tests),
    }
    return found, {
        QUESTION_INTERACTION.name: interactions["results"],
        TEST_SUMMARY.name: results["results"],
        TEST_FUNNEL.name: tests[0]["tests"] if tests else 0,
    }


def _answers(results: RowMapping, row: RowMapping) -> str:
    # The same students' tests: counting them among the many rows would sort these.
    if not row["results"]:
        return NOBODY
    return (
        f"{_who(results)} have given **{row['answers']:,} answers**, which are "
        f"**{row['results']:,} results** (one per student, test and question): "
        f"{_percent(row['correct'])} are correct, {_percent(row['revisited'])} were answered more "
        "than once."
    )


def _results(row: RowMapping) -> str:
    if not row["results"]:
        return NOBODY
    return (
        f"{_who(row)} have answered {_percent(row['attempted'])} of the questions of their tests, "
        f"and {_percent(row['accuracy'])} of these correctly; from first to last answer they "
        f"took {_number(row['minutes'])} minutes on average."
    )


def _who(row: RowMapping) -> str:
    return f"**{row['students']:,} students** in **{row['tests']:,} tests**"


def _tests(rows: Sequence[RowMapping]) -> str:
    if not rows:
        return "No test was handed in."
    lines = [
        f"| {_cell(row['test_id'])} | {row['total_submissions']:,} | "
        f"{_percent(row['completion_rate'])} | {_number(row['minutes'])} |"
        for row in rows
    ]
    more = rows[0]["tests"] - len(rows)
    return "\n".join(
        [
            "| test | submissions | completed | minutes per submission |",
            "|---|---|---|---|",
            *lines,
            *([f"\nand {more:,} more tests"] if more else []),
        ]
    )


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{float(value):.1f} %"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{float(value):,.1f}"
