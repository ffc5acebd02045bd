"""The upsert of a fact: staged rows become the fact's rows, in the caller's transaction.

Which rows are staged is decided in `selections`; when they are merged, in `attempt`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Table, text

from mcq_analytics.compute.selections import TEST_QUESTIONS
from mcq_analytics.model.facts import ACTIVE_HOURS, Fact
from mcq_analytics.model.windows import Window
from mcq_analytics.postgres.identifiers import quoted
from mcq_analytics.spark.sink import TASK

# Only rows that are new or differ are written, so that `updated_at` shows real changes.
_UPSERT = """
    WITH merged AS (
        INSERT INTO {fact} AS f ({columns}, updated_at)
        SELECT {staged_columns}, now()
        FROM {staged} s LEFT JOIN {fact} old ON {old_matches}
        WHERE s.{task} = ANY(:tasks)
            AND (old.{first_key} IS NULL OR ({old_values}) IS DISTINCT FROM ({staged_values}))
        ON CONFLICT ({key}) DO UPDATE SET {assignments}, updated_at = EXCLUDED.updated_at
        RETURNING f.xmax = 0 AS inserted
    )
    SELECT count(*) FILTER (WHERE inserted), count(*) FILTER (WHERE NOT inserted) FROM merged
"""

# The keys to delete are found before the fact is joined, by EXCEPT, which is never a nested loop.
# After the join by several columns the planner would expect one row, and reread all staged rows for
# each key.
_DELETE = """
    WITH gone AS MATERIALIZED (
        SELECT {key} FROM {touched}
        EXCEPT SELECT {staged_key} FROM {staged} s WHERE s.{task} = ANY(:tasks)
    )
    DELETE FROM {fact} f USING gone WHERE {gone_matches}
"""

_FRESH_HOURS = """
    CREATE TEMPORARY TABLE fresh_hours ON COMMIT DROP AS
    SELECT {staged_key}, to_timestamp(unnest(s.{active_hours}) * 3600.0) AS hour
    FROM {staged} s WHERE s.{task} = ANY(:tasks)
"""

# The answers that stand for a test's questions: their hours are kept too.
_FRESH_QUESTION_HOURS = """
    INSERT INTO fresh_hours (student_id, test_id, hour)
    SELECT student_id, test_id, date_trunc('hour', "timestamp", 'UTC') FROM {test_questions}
"""

_ADD_HOURS = """
    INSERT INTO {hours} ({key}, hour) SELECT DISTINCT {key}, hour FROM fresh_hours
    ON CONFLICT DO NOTHING
"""

_DELETE_HOURS = """
    DELETE FROM {hours} h WHERE h.hour >= :window_start AND h.hour < :window_end
    AND NOT EXISTS (SELECT 1 FROM fresh_hours n WHERE n.hour = h.hour AND {hour_matches})
"""


@dataclass(frozen=True)
class MergeCounts:
    """Rows of the fact that a merge inserted, updated and deleted."""

    inserted: int
    updated: int
    deleted: int

    @property
    def written(self) -> int:
        """All rows that changed."""
        return self.inserted + self.updated + self.deleted


def merge(
    connection: Connection,
    fact: Fact,
    *,
    fact_table: Table,
    hours_table: Table,
    staged: str,
    touched: str,
    test_questions: str | None,
    tasks: Sequence[int],
    window: Window,
) -> MergeCounts:
    """Replace the touched rows of a fact by the staged ones, and update the hours of the rows.

    `staged`, `touched` and `test_questions` are quoted table names; `tasks` are the task attempts
    whose rows count. Rows that are touched but not staged are deleted.
    """
    typed = {name: _typed(f"s.{quoted(name)}", fact_table, name) for name in fact.key}
    values = [quoted(name) for name in fact.column_names]
    fields = {
        "fact": quoted(fact_table.schema or "public", fact_table.name),
        "hours": quoted(hours_table.schema or "public", hours_table.name),
        "staged": staged,
        "touched": touched,
        TEST_QUESTIONS: test_questions,
        "task": TASK,
        "active_hours": ACTIVE_HOURS,
        "key": ", ".join(quoted(name) for name in fact.key),
        "first_key": quoted(fact.key[0]),
        "columns": ", ".join([*(quoted(name) for name in fact.key), *values]),
        "staged_key": ", ".join(f"{typed[name]} AS {quoted(name)}" for name in fact.key),
        "staged_columns": ", ".join([*typed.values(), *(f"s.{value}" for value in values)]),
        "old_matches": " AND ".join(f"old.{quoted(name)} = {typed[name]}" for name in fact.key),
        "old_values": ", ".join(f"old.{value}" for value in values),
        "staged_values": ", ".join(f"s.{value}" for value in values),
        "gone_matches": " AND ".join(f"gone.{quoted(n)} = f.{quoted(n)}" for n in fact.key),
        "hour_matches": " AND ".join(f"n.{quoted(name)} = h.{quoted(name)}" for name in fact.key),
        "assignments": ", ".join(f"{value} = EXCLUDED.{value}" for value in values),
    }
    bound = {
        "tasks": list(tasks),
        "window_start": window.start,
        "window_end": window.end,
    }

    def run(template: str) -> int:
        return connection.execute(text(template.format(**fields)), bound).rowcount

    inserted, updated = connection.execute(text(_UPSERT.format(**fields)), bound).one()
    deleted = run(_DELETE)
    run(_FRESH_HOURS)
    if test_questions is not None:
        run(_FRESH_QUESTION_HOURS)
    run(_ADD_HOURS)
    run(_DELETE_HOURS)
    return MergeCounts(inserted, updated, deleted)


def _typed(name: str, fact_table: Table, column: str) -> str:
    """Cast a staged key to the type of the fact's column, if it was sent as text."""
    if fact_table.c[column].type.__visit_name__.upper() == "UUID":
        return f"CAST({name} AS uuid)"
    return name
