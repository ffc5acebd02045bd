"""The upsert of the facts: staged rows become the facts' rows, in the caller's transaction.

Which rows are staged is decided in `selections`; when they are merged, in `attempt`. How the rows
of a table are replaced is in `difference`, what follows for rows that span students in `spanning`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection, Table, text

from mcq_analytics.compute.difference import (
    MergeCounts,
    Target,
    is_empty,
    listed,
    loading,
    name_of,
    replace_rows,
)
from mcq_analytics.compute.spanning import (
    FUNNELS,
    IS_IMPOSSIBLE,
    MOVED,
    OTHER_TOTALS,
    SUMMED,
    TOTALS,
    sums,
)
from mcq_analytics.compute.touched import WORK_MEMORY
from mcq_analytics.model.facts import (
    FACTS,
    QUESTION_INTERACTION,
    STUDENT_TEST,
    SUBMISSION_COUNTS,
    TEST_FUNNEL,
    TEST_SUMMARY,
)
from mcq_analytics.model.windows import Window
from mcq_analytics.postgres.fact_tables import FactTables
from mcq_analytics.postgres.identifiers import quoted
from mcq_analytics.postgres.partitions import Part, parts_of
from mcq_analytics.spark.parts import HOURS, INTERACTIONS, OWN_RESULTS, SUBMISSIONS, SUMMARIES, TASK

_FIRST_HOURS = """
    INSERT INTO {hours} (hour, {student_test})
    SELECT {fresh} FROM {staged} s WHERE s.{task} = ANY(:tasks)
"""
_ADD_HOURS = f"{_FIRST_HOURS} ON CONFLICT DO NOTHING"

# Stored hours of the window that the staged rows no longer have: found by grouping, without a join.
_DELETE_HOURS = """
    DELETE FROM {hours} WHERE ctid = ANY(ARRAY(
        SELECT max(place) FROM (
            SELECT h.ctid AS place, h.hour, {h_key} FROM {hours} h
            WHERE h.hour >= :window_start AND h.hour < :window_end
            UNION ALL
            SELECT NULL, {fresh} FROM {staged} s WHERE s.{task} = ANY(:tasks)
        ) compared GROUP BY hour, {student_test} HAVING bool_and(place IS NOT NULL)
    ))
"""


@dataclass(frozen=True)
class Staged:
    """What is merged: quoted names of the staging tables, and the task attempts that count."""

    touched: str
    parts: Mapping[str, str]
    tasks: Sequence[int]


class Merge:
    """Replaces the touched students' tests in all our tables by the staged ones.

    With `repairing`, and if much of everything is touched (`is_large`), what spans students is
    computed from everything stored, instead of being moved by what has changed.
    """

    def __init__(
        self,
        connection: Connection,
        tables: FactTables,
        staged: Staged,
        window: Window,
        *,
        repairing: bool,
        is_large: bool,
    ) -> None:
        self._connection = connection
        self._tables = tables
        self._staged = staged
        self._repairing = repairing or is_large
        self._is_large = is_large
        self._stored = (*tables.facts.values(), tables.submissions)
        self._parts: Mapping[str, tuple[Part, ...]] = {}
        self._bound = {
            "tasks": list(staged.tasks),
            "window_start": window.start,
            "window_end": window.end,
        }

    def run(self) -> dict[str, MergeCounts]:
        """Merge, and return the counts by fact."""
        # Our tables are searched by their keys alone, whatever the planner expects of them: it may
        # know nothing of tables that were filled a moment ago.
        self._set("enable_seqscan = off", "enable_bitmapscan = off", "jit = off")
        # Sorts and hashes of a long window stay in memory; there is one such session at a time.
        self._set(f"work_mem = '{WORK_MEMORY}'")
        # From here on nobody can give the facts other partitions.
        self._run(
            "LOCK TABLE {interactions}, {summaries} IN ROW EXCLUSIVE MODE",
            interactions=self._fact(0),
            summaries=self._fact(1),
        )
        self._parts = parts_of(self._connection, map(name_of, self._stored))
        counts = {QUESTION_INTERACTION.name: self._store(self._interactions())}
        self._run(
            f"CREATE TEMPORARY TABLE totals ON COMMIT DROP AS {TOTALS}",
            touched=self._staged.touched,
            interactions=self._fact(0),
        )
        self._run("ALTER TABLE totals ADD PRIMARY KEY (test_id)")
        summaries = self._store(self._summaries())
        counts[TEST_SUMMARY.name] = replace(
            summaries, updated=summaries.updated + self._update_other_totals()
        )
        counts[TEST_FUNNEL.name] = self._store_funnels()
        self._store_hours()
        return counts

    def _interactions(self) -> Target:
        table = self._tables.facts[QUESTION_INTERACTION.name]
        values = QUESTION_INTERACTION.column_names
        return Target(
            table,
            values,
            self._select(INTERACTIONS, table, QUESTION_INTERACTION.key, values),
            self._staged.touched,
            STUDENT_TEST,
            self._parts[name_of(table)],
        )

    def _summaries(self) -> Target:
        table = self._tables.facts[TEST_SUMMARY.name]
        staged = self._select(SUMMARIES, table, TEST_SUMMARY.key, OWN_RESULTS)
        return Target(
            table,
            ("total_questions", *OWN_RESULTS),
            f"SELECT s.*, t.total_questions FROM ({staged}) s JOIN totals t USING (test_id)",
            self._staged.touched,
            STUDENT_TEST,
            self._parts[name_of(table)],
        )

    def _store_funnels(self) -> MergeCounts:
        """Store what students' tests add to the funnel, and from that the funnel."""
        table = self._tables.submissions
        counts = tuple(column.name for column in SUBMISSION_COUNTS)
        target = Target(
            table,
            counts,
            self._select(SUBMISSIONS, table, STUDENT_TEST, counts),
            self._staged.touched,
            tuple(reversed(STUDENT_TEST)),
            self._parts[name_of(table)],
            is_fact=False,
        )
        was_empty = is_empty(self._connection, table)
        self._store(target)
        fields = {
            **sums(),
            "touched": self._staged.touched,
            "submissions": target.name,
            "difference": target.difference,
            "funnel": self._fact(2),
        }
        if self._repairing or was_empty:
            self._run(SUMMED, **fields)
        else:
            self._run(MOVED, **fields)
            if self._connection.execute(text(IS_IMPOSSIBLE)).scalar_one():
                self._run("DROP TABLE funnels")
                self._run(SUMMED, **fields)
        values = (*TEST_FUNNEL.column_names, *(column.name for column in TEST_FUNNEL.technical))
        funnel = self._tables.facts[TEST_FUNNEL.name]
        return self._store(
            Target(
                funnel,
                values,
                FUNNELS,
                "(SELECT test_id FROM funnels)",
                TEST_FUNNEL.key,
                self._parts[name_of(funnel)],
            )
        )

    def _update_other_totals(self) -> int:
        """Give the rows of other students the new totals of their tests."""
        # Any other join would read all rows.
        self._set("enable_hashjoin = off", "enable_mergejoin = off")
        rows = sum(
            self._run(OTHER_TOTALS, summaries=self._fact(1), differs=differs)
            for differs in ("<", ">")
        )
        self._set("enable_hashjoin = on", "enable_mergejoin = on")
        return rows

    def _store_hours(self) -> None:
        table = self._tables.hours
        fields = {
            "hours": name_of(table),
            "student_test": listed(STUDENT_TEST),
            "h_key": ", ".join(f"h.{name}" for name in STUDENT_TEST),
            "staged": self._staged.parts[HOURS],
            "task": TASK,
            "fresh": "to_timestamp(s.hour * 3600.0) AS hour, "
            + ", ".join(_typed(table, name) for name in STUDENT_TEST),
        }
        if is_empty(self._connection, table):
            with loading(self._connection, table, is_large=self._is_large):
                self._run(_FIRST_HOURS, **fields)
        else:
            self._run(_ADD_HOURS, **fields)
            self._run(_DELETE_HOURS, **fields)

    def _store(self, target: Target) -> MergeCounts:
        return replace_rows(self._connection, target, self._bound, is_large=self._is_large)

    def _select(
        self, part: str, table: Table, key: tuple[str, ...], values: tuple[str, ...]
    ) -> str:
        """Return the query for the staged rows of a part that count, typed as in a table."""
        columns = [*(_typed(table, name) for name in key), *(f"s.{quoted(n)}" for n in values)]
        return (
            f"SELECT {', '.join(columns)} FROM {self._staged.parts[part]} s "
            f"WHERE s.{TASK} = ANY(:tasks)"
        )

    def _fact(self, index: int) -> str:
        return name_of(self._tables.facts[FACTS[index].name])

    def _set(self, *settings: str) -> None:
        self._connection.execute(text("; ".join(f"SET LOCAL {setting}" for setting in settings)))

    def _run(self, template: str, **fields: str) -> int:
        return self._connection.execute(text(template.format(**fields)), self._bound).rowcount


def _typed(table: Table, column: str) -> str:
    """Return a staged key in the type of a table's column: a uuid was sent as text."""
    name = quoted(column)
    if table.c[column].type.__visit_name__.upper() == "UUID":
        return f"CAST(s.{name} AS uuid) AS {name}"
    return f"s.{name}"
