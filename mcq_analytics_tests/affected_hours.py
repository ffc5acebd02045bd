"""The hours to run again after a change, by the table of docs/exactness.md.

The document is the source: tests can use only the changes and rules that it names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime

from sqlalchemy import Connection, text

from mcq_analytics.model.windows import floor_hour
from mcq_analytics_tests.servers import CHECKOUT

HEADING = "## Which hours to run again"


def documented_rules() -> dict[str, list[str]]:
    """Return the rules for each kind of change, from the document."""
    section = (CHECKOUT / "docs" / "exactness.md").read_text().split(HEADING)[1].split("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if line.startswith("|")
    ]
    return {change: rules.split("; ") for change, rules in rows[2:]}


def _times(table: str, column: str) -> Callable[[Connection, str], set[datetime]]:
    def find(connection: Connection, condition: str) -> set[datetime]:
        rows = connection.execute(text(f'SELECT "{column}" FROM {table} WHERE {condition}'))
        return {floor_hour(moment) for moment in rows.scalars()}

    return find


RULES: Mapping[str, Callable[[Connection, str], set[datetime]]] = {
    "the hour of the answer": _times("answers", "timestamp"),
    "the hour of the submission": _times("submissions", "submit_time"),
    "every hour with an answer of the session": _times("answers", "timestamp"),
    "every hour with an answer to the question": _times("answers", "timestamp"),
}
BEFORE, AFTER = " before the change", " after it"


def hours_to_run(
    connection: Connection, change: str, condition: str, statement: str
) -> set[datetime]:
    """Execute a change and return the hours to run again, by the rules of the document.

    `condition` finds the answers or submissions concerned, before the change and after it.
    """
    rules = documented_rules()[change]
    hours: set[datetime] = set()
    for rule in rules:
        if not rule.endswith(AFTER):
            hours |= RULES[rule.removesuffix(BEFORE)](connection, condition)
    connection.execute(text(statement))
    for rule in rules:
        if not rule.endswith(BEFORE):
            hours |= RULES[rule.removesuffix(AFTER)](connection, condition)
    return hours
