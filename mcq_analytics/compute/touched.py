"""The select phase of an attempt: stages the touched students' tests, counts the window's rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from tempfile import TemporaryFile
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.engine import Engine

from mcq_analytics.compute.fingerprints import Fingerprints, fingerprints
from mcq_analytics.compute.loads import planned_rows
from mcq_analytics.compute.selections import IDS, Selections
from mcq_analytics.compute.staging import Staging
from mcq_analytics.model.base_tables import BASE_COLUMNS
from mcq_analytics.model.windows import Window
from mcq_analytics.postgres.base_snapshot import BaseSnapshot, connection_in
from mcq_analytics.postgres.inspection import BaseTables

WORK_MEMORY = "64MB"
"""For sorts and hashes of a long window, in place of the server's `work_mem`."""
SCANNED_SHARE = 0.2
"""A window with at least this share of the answers touches much of all."""


@dataclass(frozen=True)
class Touched:
    """The number of touched students' tests, and counts of the window's base rows.

    `in_window` counts its answers and submissions. `is_most` says that they are a large part of
    all. `left_out` counts those that no fact can hold, by reason; `duplicates` the ids of the
    window that have several rows in `questions` or `sessions`.
    """

    keys: int
    in_window: int
    is_most: bool
    left_out: dict[str, int]
    duplicates: dict[str, int]


def stage_touched(
    engine: Engine,
    snapshot: BaseSnapshot,
    selections: Selections,
    staging: Staging,
    window: Window,
) -> Touched:
    """Stage the students' tests that a window touches, as of a snapshot.

    The snapshot may be one of a replica; what is staged is always where `engine` leads to.
    """
    bound = {"window_start": window.start, "window_end": window.end}
    with connection_in(snapshot.engine, snapshot.identifier) as connection:
        connection.execute(text(plan_setting(selections.base)))
        in_window, left_out, duplicates = _counts(connection, selections, window)
        all_answers = planned_rows(connection, selections.all_rows("answers"))
        is_most = in_window >= SCANNED_SHARE * all_answers
        connection.execute(text(f"SET LOCAL work_mem = '{WORK_MEMORY}'"))
        # A sorted query without an index on the time would walk through another one.
        connection.execute(text("RESET enable_seqscan; RESET enable_nestloop"))
        if snapshot.engine is engine:
            keys = staging.store_touched(connection, selections.touched(), bound)
        else:
            with engine.begin() as writing:
                copied = _copied(connection, writing, selections, staging, bound)
                keys = staging.store_touched(writing, selections.touched(copied), bound)
    return Touched(keys, in_window, is_most, left_out, duplicates)


def _copied(
    reading: Connection,
    writing: Connection,
    selections: Selections,
    staging: Staging,
    bound: Mapping[str, datetime],
) -> str:
    """Copy the students' tests that a replica finds into the database; return a query for them."""
    name = staging.create_found(writing, selections.base)
    statement = str(text(selections.touched_now()).compile(dialect=reading.dialect))
    source: Any = reading.connection.cursor()
    target: Any = writing.connection.cursor()
    with TemporaryFile() as file, source, target:
        query = source.mogrify(statement, bound).decode()
        source.copy_expert(f"COPY ({query}) TO STDOUT", file)
        file.seek(0)
        target.copy_expert(f"COPY {name} FROM STDIN", file)
    return f"SELECT * FROM {name}"


def fingerprints_of(
    base: BaseTables, window: Window, is_most: bool, connection: Connection
) -> Fingerprints:
    """Return the fingerprints of a window's hours, as `connection` sees them.

    `is_most` is that of `Touched`.
    """
    setting = f"SET LOCAL work_mem = '{WORK_MEMORY}'" if is_most else plan_setting(base)
    connection.execute(text(setting))
    return fingerprints(connection, base, window, of_most=is_most)


def plan_setting(base: BaseTables) -> str:
    """Return the statement that keeps the planner of a read by keys from quadratic plans.

    With an index for every probe, no table is scanned, whatever the planner expects. If a table has
    none, it is scanned once and joined, and never searched again for each key.
    """
    plan = "enable_seqscan" if base.probes.keys() == BASE_COLUMNS.keys() else "enable_nestloop"
    return f"SET LOCAL {plan} = off"


def _counts(
    connection: Connection, selections: Selections, window: Window
) -> tuple[int, dict[str, int], dict[str, int]]:
    """Return `in_window`, `left_out` and `duplicates`."""
    in_window = 0
    left_out: dict[str, int] = {}
    duplicates: dict[str, int] = {}
    for table in ("answers", "submissions"):
        counts = dict(
            connection.execute(
                text(selections.counts(table)),
                {"window_start": window.start, "window_end": window.end},
            )
            .mappings()
            .one()
        )
        in_window += counts.pop("in_window")
        if table == "answers":
            duplicates = {of: counts.pop(f"several_{of}") for of in IDS}
        left_out |= {f"{table}_{reason}": count for reason, count in counts.items()}
    return in_window, left_out, duplicates
