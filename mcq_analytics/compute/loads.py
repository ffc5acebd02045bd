"""Estimates the base rows in a window with EXPLAIN, which reads no rows."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, text

from mcq_analytics.compute.selections import Selections
from mcq_analytics.model.facts import FACTS
from mcq_analytics.model.windows import Window
from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.inspection import inspect_base_tables


def planned_rows(connection: Connection, selections: Selections, table: str, window: Window) -> int:
    """Return the estimated number of rows of `answers` or `submissions` in a window."""
    plan = connection.execute(
        text(f"EXPLAIN (FORMAT JSON) {selections.rows_in_window(table)}"),
        {"window_start": window.start, "window_end": window.end},
    ).scalar_one()
    return int(plan[0]["Plan"]["Plan Rows"])


def largest_load(database: Database, windows: Iterable[Window]) -> int:
    """Return the estimated records of the largest window, for the fact that reads the most.

    Raises:
        McqError: a base table is not as it must be.
        sqlalchemy.exc.DBAPIError: the database refused, or was lost.

    """
    with database.engine().connect() as connection:
        base = inspect_base_tables(connection, database.source_schema)
        selections = {fact: Selections(fact, base, {}) for fact in FACTS}
        return max(
            sum(
                planned_rows(connection, selections[fact], table, window)
                for table in fact.reads
                if table in ("answers", "submissions")
            )
            for fact in FACTS
            for window in windows
        )
