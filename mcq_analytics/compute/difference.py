"""Makes the staged rows the rows of one of our tables, writing only what differs.

The staged rows are compared with the stored ones of some keys, and the difference is kept in a
temporary table, from which rows are inserted, updated and deleted. `merge` says which tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from sqlalchemy import Connection, Table, text

from mcq_analytics.compute.indexes_last import indexes_last
from mcq_analytics.postgres.identifiers import quoted
from mcq_analytics.postgres.partitions import Part

# Rows of a student's test are found by their range in the primary key, which no other index has:
# with `=`, an index on the test alone can look as good, and reads all students of the test for
# each one. Both sides then meet in a full join, which PostgreSQL cannot run as a nested loop.
_DIFFERENCE = """
    CREATE TEMPORARY TABLE {difference} ON COMMIT DROP AS
    WITH stored AS MATERIALIZED (
        SELECT f.* FROM {touched} k CROSS JOIN LATERAL ({probes}) f
    ), staged AS MATERIALIZED ({staged})
    SELECT {keys}, {new_values}, {old_values}, n.is_staged, o.part, o.place
    FROM (SELECT *, true AS is_staged FROM staged) n FULL JOIN stored o ON {key_matches}
    WHERE CASE WHEN n.is_staged AND o.place IS NOT NULL
        THEN ({new_values}) IS DISTINCT FROM ({stored_values}) ELSE true END
"""

# A part is searched only for the keys that it can hold.
_PROBE = """
    (SELECT {part} AS part, f.ctid AS place, {key_and_values} FROM {name} f
    WHERE {holds}({first}) >= ({first_of_k}) AND ({first}) <= ({first_of_k}) OFFSET 0)
"""
_KEYS_BY_PART = """
    (SELECT *, CASE {branches} END AS part FROM (SELECT {typed} FROM {touched}) k OFFSET 0)
"""

_INSERT_ALL = """
    INSERT INTO {table} ({key}, {values}{stamp_name})
    SELECT {key}, {values}{stamp} FROM ({staged}) staged
"""
# Rows come in the order of their keys from each task. If the primary key is created after them,
# sorting them all takes longer than it saves.
_INSERT_ALL_SORTED = f"{_INSERT_ALL} ORDER BY {{key}}"

# Only rows that are new or differ are written, so that `updated_at` shows real changes.
_STORE = """
    INSERT INTO {table} ({key}, {values}{stamp_name})
    SELECT {key}, {values}{stamp} FROM {difference} WHERE is_staged ORDER BY {key}
    ON CONFLICT ({key}) DO UPDATE SET {assignments}
"""

_COUNT = """
    SELECT count(*) FILTER (WHERE is_staged AND place IS NULL),
        count(*) FILTER (WHERE is_staged AND place IS NOT NULL),
        coalesce(array_agg(DISTINCT part) FILTER (WHERE is_staged IS NULL), '{{}}')
    FROM {difference}
"""

# By the address of the row: nobody else writes our tables while we hold the lock.
_DELETE = """
    DELETE FROM {name} WHERE ctid = ANY(ARRAY(
        SELECT place FROM {difference} WHERE is_staged IS NULL AND part = {part}
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
class Target:
    """A table of ours that is compared with a query for its new rows, over some keys.

    `ordered` are the columns that the primary key starts with, which the query `keys` has. `parts`
    are the tables that hold the rows.
    """

    table: Table
    values: tuple[str, ...]
    staged: str
    keys: str
    ordered: tuple[str, ...]
    parts: tuple[Part, ...]
    is_fact: bool = True

    @property
    def name(self) -> str:
        """Qualified and quoted name of the table."""
        return name_of(self.table)

    @property
    def difference(self) -> str:
        """Name of the temporary table of the rows that differ."""
        return f"{self.table.name}_difference"

    @property
    def fields(self) -> dict[str, str]:
        """The fields of the statements in this module."""
        key = [column.name for column in self.table.primary_key.columns]
        names = [quoted(name) for name in (*key, *self.values)]
        first = [quoted(name) for name in self.ordered]
        values = [quoted(name) for name in self.values]
        stamped = [*values, *(["updated_at"] if self.is_fact else [])]
        of_probe = {
            "key_and_values": ", ".join(f"f.{name}" for name in names),
            "first": ", ".join(f"f.{name}" for name in first),
            "first_of_k": ", ".join(f"k.{name}" for name in first),
        }
        return {
            "table": self.name,
            "difference": self.difference,
            "touched": self._keys,
            "probes": " UNION ALL ".join(
                _PROBE.format(
                    part=index,
                    name=part.name,
                    holds="" if part.holds is None else f"k.part = {index} AND ",
                    **of_probe,
                )
                for index, part in enumerate(self.parts)
            ),
            "staged": self.staged,
            "key": listed(key),
            "values": ", ".join(values),
            "stamp_name": ", updated_at" if self.is_fact else "",
            "stamp": ", now()" if self.is_fact else "",
            "keys": ", ".join(
                f"coalesce(n.{name}, o.{name}) AS {name}" for name in map(quoted, key)
            ),
            "new_values": ", ".join(f"n.{name}" for name in values),
            "old_values": ", ".join(
                f"o.{quoted(name)} AS {quoted(f'old_{name}')}" for name in self.values
            ),
            "key_matches": " AND ".join(f"n.{name} = o.{name}" for name in map(quoted, key)),
            "stored_values": ", ".join(f"o.{name}" for name in values),
            "assignments": ", ".join(f"{name} = EXCLUDED.{name}" for name in stamped),
        }

    @property
    def _keys(self) -> str:
        """The keys, each with the number of the part that can hold it if there are several."""
        if all(part.holds is None for part in self.parts):
            return self.keys
        return _KEYS_BY_PART.format(
            typed=", ".join(_fitting(self.table, name) for name in self.ordered),
            touched=self.keys,
            branches=" ".join(
                f"WHEN {part.holds} THEN {index}"
                for index, part in enumerate(self.parts)
                if part.holds is not None
            ),
        )


def replace_rows(
    connection: Connection, target: Target, bound: Mapping[str, object], *, is_large: bool
) -> MergeCounts:
    """Make the staged rows the rows of a table for the target's keys; `bound` are parameters.

    An empty table takes them as they are, and there is no table of differences then. If they are
    many (`is_large`), its indexes are created after them.
    """
    fields = target.fields

    def run(template: str, **more: str) -> int:
        return connection.execute(text(template.format(**fields, **more)), bound).rowcount

    if is_empty(connection, target.table):
        with loading(connection, target.table, is_large=is_large):
            return MergeCounts(inserted=run(_INSERT_ALL if is_large else _INSERT_ALL_SORTED))
    run(_DIFFERENCE)
    inserted, updated, with_deleted = connection.execute(text(_COUNT.format(**fields))).one()
    if inserted or updated:
        run(_STORE)
    deleted = sum(
        run(_DELETE, name=target.parts[part].name, part=str(part)) for part in with_deleted
    )
    return MergeCounts(inserted, updated, deleted)


def loading(
    connection: Connection, table: Table, *, is_large: bool
) -> AbstractContextManager[None]:
    """Return the context in which an empty table is filled."""
    return indexes_last(connection, table) if is_large else nullcontext()


def is_empty(connection: Connection, table: Table) -> bool:
    """Return whether a table has no row."""
    empty = f"SELECT NOT EXISTS (SELECT 1 FROM {name_of(table)})"
    return bool(connection.execute(text(empty)).scalar_one())


def name_of(table: Table) -> str:
    """Return the qualified and quoted name of a table."""
    return quoted(table.schema or "public", table.name)


def _fitting(table: Table, column: str) -> str:
    """Return a key in the type of a table's column, null where that cannot hold it.

    Submissions may have wider integers than answers.
    """
    name = quoted(column)
    if table.c[column].type.__visit_name__.upper() != "INTEGER":
        return name
    return (
        f"CASE WHEN {name} BETWEEN {-(2**31)} AND {2**31 - 1} THEN CAST({name} AS int) END {name}"
    )


def listed(names: Sequence[str]) -> str:
    """Return names as a list in SQL."""
    return ", ".join(map(quoted, names))
