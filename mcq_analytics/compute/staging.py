"""The staging tables of an attempt: their names, creation, sizes and removal.

They are unlogged tables in the fact schema, so that Spark's tasks can read and fill them from
sessions of their own. Which rows they hold is decided in `selections`; `merge` upserts them.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import Connection, text

from mcq_analytics.compute.selections import TEST_QUESTIONS
from mcq_analytics.model.facts import ACTIVE_HOURS, Fact, IdType
from mcq_analytics.postgres.identifiers import quoted
from mcq_analytics.spark.sink import TASK

TOUCHED = "touched"
"""Staging table of the keys that the window touches."""

ROWS = "rows"
"""Staging table of the computed fact rows, with the task attempt that wrote each."""

_READS = "reads"  # how many rows each split of an input has read
_EXTENTS = "extents"  # the snapshot, and how many blocks each table of keys fills

_PARTS = (ROWS, _READS, _EXTENTS, TOUCHED, TEST_QUESTIONS)

_COPIED_AS = {
    IdType.INTEGER: "integer",
    IdType.BIGINT: "bigint",
    IdType.TEXT: "text",
    IdType.UUID: "text",
}


class Staging:
    """The staging tables of one attempt. Their names stay when the attempt is retried."""

    def __init__(self, schema: str, fact: Fact) -> None:
        self._schema = schema
        self._fact = fact
        self._prefix = f"{_prefix(fact)}{uuid.uuid4().hex[:8]}_"
        self._blocks: dict[str, int] = {}

    def name(self, part: str) -> str:
        """Return the name of a staging table, without schema or quotes."""
        return self._prefix + part

    def quoted(self, part: str) -> str:
        """Return the qualified and quoted name of a staging table."""
        return quoted(self._schema, self.name(part))

    def create(self, connection: Connection, key_types: Mapping[str, IdType]) -> None:
        """Create the tables that Spark's tasks fill."""
        for part, columns in (
            (ROWS, staging_columns(self._fact, key_types)),
            (_READS, "snapshot text, input text, split bigint, rows bigint"),
            (_EXTENTS, "part text, snapshot text, blocks bigint"),
        ):
            connection.exec_driver_sql(f"CREATE UNLOGGED TABLE {self.quoted(part)} ({columns})")

    def store_keys(
        self, connection: Connection, part: str, select: str, bound: Mapping[str, datetime]
    ) -> int:
        """Create a table of keys from a query and return the number of its rows."""
        name = self.quoted(part)
        rows = connection.execute(text(f"CREATE UNLOGGED TABLE {name} AS {select}"), bound).rowcount
        connection.exec_driver_sql(f"ANALYZE {name}")
        # The file may be longer than its rows: the last row's address says where they end.
        last = connection.execute(text(f"SELECT CAST(max(ctid) AS text) FROM {name}")).scalar()
        self._blocks[part] = int(last.strip("()").split(",")[0]) + 1 if last else 0
        return rows

    def store_extents(self, connection: Connection, snapshot: str) -> None:
        """Store, for the readers, the snapshot and the size in blocks of each table of keys."""
        connection.execute(
            text(f"INSERT INTO {self.quoted(_EXTENTS)} VALUES (:part, :snapshot, :blocks)"),
            [
                {"part": part, "snapshot": snapshot, "blocks": blocks}
                for part, blocks in self._blocks.items()
            ],
        )

    def blocks(self, part: str) -> int:
        """Return how many blocks a table of keys fills."""
        return self._blocks[part]

    def extent_sql(self, part: str) -> str:
        """Return the query of a reader for the snapshot and the blocks of its keys."""
        return f"SELECT * FROM {self.quoted(_EXTENTS)} WHERE part = '{part}'"

    @property
    def count_sql(self) -> str:
        """Return the statement by which a reader records the rows that it has read."""
        return f"INSERT INTO {self.quoted(_READS)} VALUES ($1, $2, $3, $4)"

    def rows_read(self, connection: Connection) -> int:
        """Return how many base rows were read in the snapshot; what Spark read twice counts once.

        Reads of an earlier snapshot, before a retry, do not count.
        """
        count: int = connection.execute(
            text(
                "SELECT CAST(coalesce(sum(rows), 0) AS bigint) FROM "
                f"(SELECT DISTINCT input, split, rows FROM {self.quoted(_READS)} "
                f"JOIN {self.quoted(_EXTENTS)} USING (snapshot)) r"
            )
        ).scalar_one()
        return count

    def rows_computed(self, connection: Connection, tasks: Sequence[int]) -> int:
        """Return how many fact rows the task attempts that count have written."""
        count: int = connection.execute(
            text(f"SELECT count(*) FROM {self.quoted(ROWS)} WHERE {TASK} = ANY(:tasks)"),
            {"tasks": list(tasks)},
        ).scalar_one()
        return count

    def drop(self, connection: Connection) -> None:
        """Drop the tables, as far as they exist."""
        for part in _PARTS:
            connection.exec_driver_sql(f"DROP TABLE IF EXISTS {self.quoted(part)}")


def staging_columns(fact: Fact, key_types: Mapping[str, IdType]) -> str:
    """Return the column definitions of a table of computed rows, with types as COPY sends them."""
    return ", ".join(
        [
            *(f"{quoted(name)} {_COPIED_AS[key_types[name]]}" for name in fact.key),
            *(f"{quoted(column.name)} {column.type.value}" for column in fact.columns),
            f"{ACTIVE_HOURS} integer[]",
            f"{TASK} bigint",
        ]
    )


def drop_leftovers(connection: Connection, schema: str, fact: Fact) -> None:
    """Drop the staging tables of attempts that died. Only the holder of the fact's lock may."""
    for (name,) in connection.execute(
        text(
            "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE n.nspname = :schema AND c.relkind = 'r' AND starts_with(c.relname, :prefix)"
        ),
        {"schema": schema, "prefix": _prefix(fact)},
    ).all():
        connection.exec_driver_sql(f"DROP TABLE {quoted(schema, name)}")


def _prefix(fact: Fact) -> str:
    return f"stg_{fact.name}_"
