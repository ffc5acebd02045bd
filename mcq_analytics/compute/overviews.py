"""Overviews: a few sentences for people on the fact rows that a window touches.

Dagster's UI shows them with each run; nothing is computed from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, RowMapping, text

from mcq_analytics.model.facts import QUESTION_INTERACTION, TEST_FUNNEL, TEST_SUMMARY, Fact
from mcq_analytics.postgres.identifiers import quoted

TESTS_NAMED = 10

_ROWS = "(SELECT DISTINCT {key} FROM {touched}) t JOIN {fact} f USING ({key})"

_STATEMENTS: Mapping[str, str] = {
    QUESTION_INTERACTION.name: f"""
        SELECT count(*) AS results, count(DISTINCT student_id) AS students,
            count(DISTINCT test_id) AS tests, coalesce(sum(answer_count), 0) AS answers,
            100.0 * avg(CAST(is_correct AS int)) AS correct,
            100.0 * avg(CAST(revisited AS int)) AS revisited
        FROM {_ROWS}
    """,
    TEST_SUMMARY.name: f"""
        SELECT count(*) AS results, count(DISTINCT student_id) AS students,
            count(DISTINCT test_id) AS tests, avg(accuracy_percent) AS accuracy,
            avg(100.0 * questions_attempted / total_questions) AS attempted,
            avg(time_spent) / 60 AS minutes
        FROM {_ROWS}
    """,
    TEST_FUNNEL.name: f"""
        SELECT test_id, total_submissions, completion_rate, avg_submit_time / 60 AS minutes,
            count(*) OVER () AS tests
        FROM {_ROWS}
        ORDER BY total_submissions DESC, test_id LIMIT {TESTS_NAMED}
    """,
}


def overview(connection: Connection, fact: Fact, fact_table: str, touched: str) -> str:
    """Return Markdown on the touched rows. Both table names must be quoted."""
    statement = _STATEMENTS[fact.name].format(
        fact=fact_table, touched=touched, key=", ".join(quoted(name) for name in fact.key)
    )
    rows = connection.execute(text(statement)).mappings().all()
    if fact == TEST_FUNNEL:
        return _tests(rows)
    [row] = rows
    if not row["results"]:
        return "Nobody answered."
    who = f"**{row['students']:,} students** in **{row['tests']:,} tests**"
    if fact == TEST_SUMMARY:
        return (
            f"{who} have answered {_percent(row['attempted'])} of the questions of their tests, "
            f"and {_percent(row['accuracy'])} of these correctly; from first to last answer they "
            f"took {_number(row['minutes'])} minutes on average."
        )
    return (
        f"{who} have given **{row['answers']:,} answers**, which are **{row['results']:,} "
        "results** (one per student, test and question): "
        f"{_percent(row['correct'])} are correct, {_percent(row['revisited'])} were answered more "
        "than once."
    )


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
