"""The upsert of the facts: staged rows become the facts' rows, in the caller's transaction.

Which rows are staged is decided in `selections`; when they are merged, in `attempt`. Every step
compares the staged rows of the touched students' tests with the stored ones and keeps the
difference in a temporary table, from which rows are inserted, updated and deleted, and from which
the rows that span students follow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection, Table, text

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
from mcq_analytics.spark.parts import HOURS, INTERACTIONS, SUBMISSIONS, SUMMARIES, TASK

# Rows of a student's test are found by their range in the primary key, which no other index has:
# with `=`, an index on the test alone can look as good, and reads all students of the test for
# each one. Both sides then meet in a full join, which PostgreSQL cannot run as a nested loop.
_DIFFERENCE = """
    CREATE TEMPORARY TABLE {difference} ON COMMIT DROP AS
    WITH stored AS MATERIALIZED (
        SELECT f.* FROM {touched} k CROSS JOIN LATERAL (
            SELECT f.ctid AS place, {key_and_values}
            FROM {table} f
            WHERE ({first}) >= ({first_of_k}) AND ({first}) <= ({first_of_k}) OFFSET 0
        ) f
    ), staged AS MATERIALIZED ({staged})
    SELECT {keys}, {new_values}, {old_values}, n.is_staged, o.place
    FROM (SELECT *, true AS is_staged FROM staged) n FULL JOIN stored o ON {key_matches}
    WHERE CASE WHEN n.is_staged AND o.place IS NOT NULL
        THEN ({staged_values}) IS DISTINCT FROM ({stored_values}) ELSE true END
"""

_INSERT_ALL = """
    INSERT INTO {table} ({key}, {values}{stamp_name})
    SELECT {key}, {values}{stamp} FROM ({staged}) staged ORDER BY {key}
"""

# Only rows that are new or differ are written, so that `updated_at` shows real changes.
_STORE = """
    INSERT INTO {table} ({key}, {values}{stamp_name})
    SELECT {key}, {new_names}{stamp} FROM {difference} WHERE is_staged ORDER BY {key}
    ON CONFLICT ({key}) DO UPDATE SET {assignments}
"""

_COUNT = """
    SELECT count(*) FILTER (WHERE is_staged AND place IS NULL),
        count(*) FILTER (WHERE is_staged AND place IS NOT NULL) FROM {difference}
"""

# By the address of the row: nobody else writes our tables while we hold the lock.
_DELETE = """
    DELETE FROM {table}
    WHERE ctid = ANY(ARRAY(SELECT place FROM {difference} WHERE is_staged IS NULL))
"""

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
_OTHER_TOTALS = """
    UPDATE {summaries} f SET total_questions = t.total_questions, updated_at = now()
    FROM totals t WHERE f.test_id = t.test_id AND f.total_questions {differs} t.total_questions
"""

# By the difference of what students' tests add: flat, however many students a test has.
_MOVED = """
    CREATE TEMPORARY TABLE funnels ON COMMIT DROP AS
    SELECT d.test_id, {moved}
    FROM (SELECT test_id, {net} FROM {difference} GROUP BY test_id) d
    LEFT JOIN {funnel} f ON f.test_id = d.test_id
"""

# From all that is stored: it costs all students of the tests, and mends what was wrong.
_SUMMED = """
    CREATE TEMPORARY TABLE funnels ON COMMIT DROP AS
    SELECT t.test_id, {summed}
    FROM (SELECT DISTINCT test_id FROM {touched}) t
    LEFT JOIN {submissions} s ON s.test_id = t.test_id GROUP BY t.test_id
"""

_FUNNELS = """
    SELECT test_id, submissions AS total_submissions, completed_submissions,
        submissions - completed_submissions AS incomplete_submissions,
        CAST(100 AS float8) * completed_submissions / submissions AS completion_rate,
        CAST(timed_microseconds AS float8) / nullif(timed_submissions, 0) / 1000000
            AS avg_submit_time,
        timed_submissions, timed_microseconds
    FROM funnels WHERE submissions > 0
"""

_ADD_HOURS = """
    INSERT INTO {hours} (hour, {student_test})
    SELECT DISTINCT {fresh} FROM {staged} s WHERE s.{task} = ANY(:tasks) ON CONFLICT DO NOTHING
"""

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
class MergeCounts:
    """Rows of a fact that a merge inserted, updated and deleted."""

    inserted: int = 0
    updated: int = 0
    deleted: int = 0

    @property
    def written(self) -> int:
        """All rows that changed."""
        return self.inserted + self.updated + self.deleted


@dataclass(frozen=True)
class Staged:
    """What is merged: quoted names of the staging tables, and the task attempts that count."""

    touched: str
    parts: Mapping[str, str]
    tasks: Sequence[int]


@dataclass(frozen=True)
class _Target:
    """A table of ours that is compared with a query for its new rows, over some keys.

    `ordered` are the columns that the primary key starts with, which the query `keys` has.
    """

    table: Table
    values: tuple[str, ...]
    staged: str
    keys: str
    ordered: tuple[str, ...]
    is_fact: bool = True

    @property
    def name(self) -> str:
        return quoted(self.table.schema or "public", self.table.name)

    @property
    def difference(self) -> str:
        """Name of the temporary table of the rows that differ."""
        return f"{self.table.name}_difference"

    @property
    def fields(self) -> dict[str, str]:
        key = [column.name for column in self.table.primary_key.columns]
        names = [quoted(name) for name in (*key, *self.values)]
        first = [quoted(name) for name in self.ordered]
        values = [quoted(name) for name in self.values]
        stamped = [*values, *(["updated_at"] if self.is_fact else [])]
        return {
            "table": self.name,
            "difference": self.difference,
            "touched": self.keys,
            "staged": self.staged,
            "key": _listed(key),
            "values": ", ".join(values),
            "new_names": ", ".join(values),
            "stamp_name": ", updated_at" if self.is_fact else "",
            "stamp": ", now()" if self.is_fact else "",
            "key_and_values": ", ".join(f"f.{name}" for name in names),
            "first": ", ".join(f"f.{name}" for name in first),
            "first_of_k": ", ".join(f"k.{name}" for name in first),
            "keys": ", ".join(
                f"coalesce(n.{name}, o.{name}) AS {name}" for name in map(quoted, key)
            ),
            "new_values": ", ".join(f"n.{name}" for name in values),
            "old_values": ", ".join(
                f"o.{quoted(name)} AS {quoted(f'old_{name}')}" for name in self.values
            ),
            "key_matches": " AND ".join(f"n.{name} = o.{name}" for name in map(quoted, key)),
            "staged_values": ", ".join(f"n.{name}" for name in values),
            "stored_values": ", ".join(f"o.{name}" for name in values),
            "assignments": ", ".join(f"{name} = EXCLUDED.{name}" for name in stamped),
        }


class Merge:
    """Replaces the touched students' tests in all our tables by the staged ones.

    With `repairing`, what spans students is computed from everything stored, instead of being moved
    by what has changed.
    """

    def __init__(
        self,
        connection: Connection,
        tables: FactTables,
        staged: Staged,
        window: Window,
        *,
        repairing: bool,
    ) -> None:
        self._connection = connection
        self._tables = tables
        self._staged = staged
        self._repairing = repairing
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
        self._set("work_mem = '64MB'")
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

    def _interactions(self) -> _Target:
        table = self._tables.facts[QUESTION_INTERACTION.name]
        values = QUESTION_INTERACTION.column_names
        return _Target(
            table,
            values,
            self._select(INTERACTIONS, table, QUESTION_INTERACTION.key, values),
            self._staged.touched,
            STUDENT_TEST,
        )

    def _summaries(self) -> _Target:
        table = self._tables.facts[TEST_SUMMARY.name]
        own = tuple(name for name in TEST_SUMMARY.column_names if name != "total_questions")
        staged = self._select(SUMMARIES, table, TEST_SUMMARY.key, own)
        return _Target(
            table,
            ("total_questions", *own),
            f"SELECT s.*, t.total_questions FROM ({staged}) s JOIN totals t USING (test_id)",
            self._staged.touched,
            STUDENT_TEST,
        )

    def _store_funnels(self) -> MergeCounts:
        """Store what students' tests add to the funnel, and from that the funnel."""
        table = self._tables.submissions
        counts = tuple(column.name for column in SUBMISSION_COUNTS)
        target = _Target(
            table,
            counts,
            self._select(SUBMISSIONS, table, STUDENT_TEST, counts),
            self._staged.touched,
            tuple(reversed(STUDENT_TEST)),
            is_fact=False,
        )
        was_empty = self._is_empty(table)
        self._store(target)
        if self._repairing or was_empty:
            self._run(
                _SUMMED,
                touched=self._staged.touched,
                submissions=target.name,
                summed=", ".join(
                    f"{_whole(f'coalesce(sum(s.{name}), 0)', name)} AS {name}" for name in counts
                ),
            )
        else:
            self._run(
                _MOVED,
                difference=target.difference,
                funnel=self._fact(2),
                net=", ".join(
                    f"sum(coalesce({name}, 0) - coalesce(old_{name}, 0)) AS {name}"
                    for name in counts
                ),
                moved=", ".join(
                    f"{_whole(f'coalesce(f.{of_test}, 0) + d.{name}', name)} AS {name}"
                    for name, of_test in zip(counts, _OF_TEST, strict=True)
                ),
            )
        values = (*TEST_FUNNEL.column_names, *(column.name for column in TEST_FUNNEL.technical))
        funnel = self._tables.facts[TEST_FUNNEL.name]
        return self._store(
            _Target(funnel, values, _FUNNELS, "(SELECT test_id FROM funnels)", TEST_FUNNEL.key)
        )

    def _update_other_totals(self) -> int:
        """Give the rows of other students the new totals of their tests."""
        # Any other join would read all rows.
        self._set("enable_hashjoin = off", "enable_mergejoin = off")
        rows = sum(
            self._run(_OTHER_TOTALS, summaries=self._fact(1), differs=differs)
            for differs in ("<", ">")
        )
        self._set("enable_hashjoin = on", "enable_mergejoin = on")
        return rows

    def _store_hours(self) -> None:
        table = self._tables.hours
        fields = {
            "hours": quoted(table.schema or "public", table.name),
            "student_test": _listed(STUDENT_TEST),
            "h_key": ", ".join(f"h.{name}" for name in STUDENT_TEST),
            "staged": self._staged.parts[HOURS],
            "task": TASK,
            "fresh": "to_timestamp(s.hour * 3600.0) AS hour, "
            + ", ".join(_typed(table, name) for name in STUDENT_TEST),
        }
        self._run(_ADD_HOURS, **fields)
        self._run(_DELETE_HOURS, **fields)

    def _store(self, target: _Target) -> MergeCounts:
        """Make the staged rows the rows of a table for the touched keys."""
        fields = target.fields
        if self._is_empty(target.table):
            return MergeCounts(inserted=self._run(_INSERT_ALL, **fields))
        self._run(_DIFFERENCE, **fields)
        inserted, updated = self._connection.execute(text(_COUNT.format(**fields))).one()
        if inserted or updated:
            self._run(_STORE, **fields)
        return MergeCounts(inserted, updated, self._run(_DELETE, **fields))

    def _is_empty(self, table: Table) -> bool:
        name = quoted(table.schema or "public", table.name)
        statement = f"SELECT NOT EXISTS (SELECT 1 FROM {name})"
        return bool(self._connection.execute(text(statement)).scalar_one())

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
        table = self._tables.facts[FACTS[index].name]
        return quoted(table.schema or "public", table.name)

    def _set(self, *settings: str) -> None:
        for setting in settings:
            self._connection.execute(text(f"SET LOCAL {setting}"))

    def _run(self, template: str, **fields: str) -> int:
        return self._connection.execute(text(template.format(**fields)), self._bound).rowcount


_OF_TEST = (
    "total_submissions",
    "completed_submissions",
    "timed_submissions",
    "timed_microseconds",
)
"""The columns of the funnel that are sums of `SUBMISSION_COUNTS`, in their order."""


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(quoted, names))


def _whole(expression: str, column: str) -> str:
    """Return a sum in the type of its column: sums of integers are numeric."""
    kind = {one.name: one.type.value for one in SUBMISSION_COUNTS}[column]
    return f"CAST({expression} AS {kind})"


def _typed(table: Table, column: str) -> str:
    """Return a staged key in the type of a table's column: a uuid was sent as text."""
    name = quoted(column)
    if table.c[column].type.__visit_name__.upper() == "UUID":
        return f"CAST(s.{name} AS uuid) AS {name}"
    return f"s.{name}"
