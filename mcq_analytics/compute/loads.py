"""Estimates base rows with EXPLAIN, which reads no rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

from sqlalchemy import Connection, text

from mcq_analytics.compute.selections import Selections
from mcq_analytics.model.windows import Window
from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.inspection import inspect_base_tables


def planned_rows(
    connection: Connection, query: str, bound: Mapping[str, datetime] | None = None
) -> int:
    """Return how many rows the planner expects of a query."""
    plan = connection.execute(text(f"EXPLAIN (FORMAT JSON) {query}"), bound or {}).scalar_one()
    return int(plan[0]["Plan"]["Plan Rows"])


def largest_load(database: Database, windows: Iterable[Window]) -> int:
    """Return the estimated records of the largest window.

    Raises:
        McqError: a base table is not as it must be.
        sqlalchemy.exc.DBAPIError: the database refused, or was lost.

    """
    with database.engine().connect() as connection:
        base = inspect_base_tables(connection, database.source_schema)
        selections = Selections(base, {})
        return max(
            sum(
                planned_rows(
                    connection,
                    selections.rows_in_window(table),
                    {"window_start": window.start, "window_end": window.end},
                )
                for table in ("answers", "submissions")
            )
            for window in windows
        )
