"""The select phase of an attempt: stage the touched keys, and count the window's base rows."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text
from sqlalchemy.engine import Engine

from mcq_analytics.compute.fingerprints import Fingerprints, fingerprints
from mcq_analytics.compute.loads import planned_rows
from mcq_analytics.compute.selections import TEST_QUESTIONS, Selections
from mcq_analytics.compute.staging import TOUCHED, Staging
from mcq_analytics.model.facts import TEST_SUMMARY
from mcq_analytics.model.windows import Window
from mcq_analytics.postgres.base_snapshot import import_snapshot


@dataclass(frozen=True)
class Touched:
    """Number of touched keys, and counts of the window's base rows.

    `record_count` is the planner's estimate of the window's rows. `left_out` counts those that no
    fact can hold, by reason; `duplicates` the ids of the window that have several rows in
    `questions` or `sessions`. `fingerprints` are those of the window's hours.
    """

    keys: int
    record_count: int
    left_out: dict[str, int]
    duplicates: dict[str, int]
    fingerprints: Fingerprints


def stage_touched(
    engine: Engine, selections: Selections, staging: Staging, window: Window, snapshot: str
) -> Touched:
    """Stage the keys that a window touches, as of an exported snapshot."""
    with engine.connect() as plain:
        connection = plain.execution_options(isolation_level="REPEATABLE READ")
        with connection.begin():
            import_snapshot(connection, snapshot)
            bound = {"window_start": window.start, "window_end": window.end}
            if selections.fact == TEST_SUMMARY:
                staging.store_keys(connection, TEST_QUESTIONS, selections.test_questions(), bound)
            keys = staging.store_keys(connection, TOUCHED, selections.touched(), bound)
            staging.store_extents(connection, snapshot)
            found = fingerprints(connection, selections.base, selections.fact, window)
            counts = _window_counts(connection, selections, window)
    return Touched(keys, *counts, found)


def _window_counts(
    connection: Connection, selections: Selections, window: Window
) -> tuple[int, dict[str, int], dict[str, int]]:
    """Return `record_count`, `left_out` and `duplicates`."""
    bound = {"window_start": window.start, "window_end": window.end}
    record_count = 0
    left_out: dict[str, int] = {}
    duplicates: dict[str, int] = {}
    for table in selections.fact.reads:
        if table in ("answers", "submissions"):
            record_count += planned_rows(connection, selections, table, window)
            counts = connection.execute(text(selections.left_out(table)), bound).mappings().one()
            left_out |= {f"{table}_{reason}": count for reason, count in counts.items()}
        else:
            duplicates[table] = connection.execute(
                text(selections.duplicates(table)), bound
            ).scalar_one()
    return record_count, left_out, duplicates
