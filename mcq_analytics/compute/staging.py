"""The staging tables of an attempt: their names, creation, sizes and removal.

They are unlogged tables in the fact schema, so that Spark's tasks can read and fill them from
sessions of their own. Which rows they hold is decided in `selections`; `merge` upserts them.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import Connection, text

from mcq_analytics.model.facts import (
    QUESTION_INTERACTION,
    STUDENT_TEST,
    SUBMISSION_COUNTS,
    TEST_SUMMARY,
    IdType,
)
from mcq_analytics.postgres.identifiers import quoted
from mcq_analytics.postgres.inspection import BaseTables
from mcq_analytics.spark.parts import (
    HOURS,
    INTERACTIONS,
    OWN_RESULTS,
    PARTS,
    SUBMISSIONS,
    SUMMARIES,
    TASK,
)

TOUCHED = "touched"
"""Staging table of the students' tests that the window touches, in the order of their ids."""

_FOUND = "found"  # students' tests that were found on a replica
_READS = "reads"  # how many rows each split of an input has read

_TABLES = (TOUCHED, *PARTS, _FOUND, _READS)
_PREFIX = "stg_"

_COPIED_AS = {
    IdType.INTEGER: "integer",
    IdType.BIGINT: "bigint",
    IdType.TEXT: "text",
    IdType.UUID: "text",
}


class Staging:
    """The staging tables of one attempt. Their names stay when the attempt is retried."""

    def __init__(self, schema: str) -> None:
        self._schema = schema
        self._prefix = f"{_PREFIX}{uuid.uuid4().hex[:12]}_"

    def name(self, part: str) -> str:
        """Return the name of a staging table, without schema or quotes."""
        return self._prefix + part

    def names(self) -> dict[str, str]:
        """Return the names of the tables of computed rows, by part."""
        return {part: self.name(part) for part in PARTS}

    def quoted(self, part: str) -> str:
        """Return the qualified and quoted name of a staging table."""
        return quoted(self._schema, self.name(part))

    def create(self, connection: Connection, base: BaseTables) -> None:
        """Create the tables that Spark's tasks fill."""
        for part in PARTS:
            columns = staging_columns(part, base)
            connection.exec_driver_sql(f"CREATE UNLOGGED TABLE {self.quoted(part)} ({columns})")
        connection.exec_driver_sql(
            f"CREATE UNLOGGED TABLE {self.quoted(_READS)} "
            "(snapshot text, input text, split bigint, rows bigint)"
        )

    def create_found(self, connection: Connection, base: BaseTables) -> str:
        """Create the table for what a replica finds, and return its qualified and quoted name."""
        name = self.quoted(_FOUND)
        columns = ", ".join(
            f"{quoted(column)} {base.student_test_type(column).value}" for column in STUDENT_TEST
        )
        connection.exec_driver_sql(f"CREATE UNLOGGED TABLE {name} ({columns})")
        return name

    def store_touched(
        self, connection: Connection, select: str, bound: Mapping[str, datetime]
    ) -> int:
        """Create the table of touched students' tests from a query; return how many there are."""
        name = self.quoted(TOUCHED)
        rows = connection.execute(text(f"CREATE UNLOGGED TABLE {name} AS {select}"), bound).rowcount
        connection.exec_driver_sql(
            f"ALTER TABLE {name} ADD PRIMARY KEY ({', '.join(STUDENT_TEST)})"
        )
        connection.exec_driver_sql(f"ANALYZE {name}")
        return rows

    def touched_blocks(self, connection: Connection) -> int:
        """Return how many blocks the touched students' tests fill.

        The table is larger: the server extends a table by many blocks in advance.
        """
        count: int = connection.execute(
            text(
                "SELECT coalesce(1 + CAST(split_part(ltrim(CAST(max(ctid) AS text), '('), ',', 1) "
                f"AS bigint), 0) FROM {self.quoted(TOUCHED)}"
            )
        ).scalar_one()
        return count

    @property
    def count_sql(self) -> str:
        """Return the statement by which a reader records the rows that it has read."""
        return f"INSERT INTO {self.quoted(_READS)} VALUES ($1, $2, $3, $4)"

    def rows_read(self, connection: Connection, snapshot: str) -> int:
        """Return how many base rows readers read in a snapshot; what was read twice counts once."""
        count: int = connection.execute(
            text(
                "SELECT CAST(coalesce(sum(rows), 0) AS bigint) FROM (SELECT DISTINCT input, split, "
                f"rows FROM {self.quoted(_READS)} WHERE snapshot = :snapshot "
                "AND input <> :touched) r"
            ),
            {"snapshot": snapshot, "touched": TOUCHED},
        ).scalar_one()
        return count

    def drop(self, connection: Connection) -> None:
        """Drop the tables, as far as they exist."""
        names = ", ".join(map(self.quoted, _TABLES))
        connection.exec_driver_sql(f"DROP TABLE IF EXISTS {names}")


def staging_columns(part: str, base: BaseTables) -> str:
    """Return the column definitions of a table of computed rows, with types as COPY sends them."""
    ids = {name: base.student_test_type(name) for name in STUDENT_TEST}
    if part == INTERACTIONS:
        ids["question_id"] = base.id_type("answers", "question_id")
    columns = {
        INTERACTIONS: QUESTION_INTERACTION.columns,
        SUMMARIES: [column for column in TEST_SUMMARY.columns if column.name in OWN_RESULTS],
        SUBMISSIONS: SUBMISSION_COUNTS,
        HOURS: [],
    }[part]
    return ", ".join(
        [
            *(f"{quoted(name)} {_COPIED_AS[id_type]}" for name, id_type in ids.items()),
            *(f"{quoted(column.name)} {column.type.value}" for column in columns),
            *(["hour integer"] if part == HOURS else []),
            f"{TASK} bigint",
        ]
    )


_END_TASKS = """
    SELECT pg_terminate_backend(l.pid)
    FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
    WHERE l.relation = CAST(:table AS regclass) AND l.pid <> pg_backend_pid()
        AND a.usename = current_user
        AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


def drop_leftovers(connection: Connection, schema: str) -> None:
    """Drop the staging tables of attempts that died. Only the holder of the facts' lock may.

    On a Spark server or cluster, tasks of such an attempt may still copy; their sessions are ended.
    """
    for (name,) in connection.execute(
        text(
            "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE n.nspname = :schema AND c.relkind = 'r' AND starts_with(c.relname, :prefix)"
        ),
        {"schema": schema, "prefix": _PREFIX},
    ).all():
        table = quoted(schema, name)
        connection.execute(text(_END_TASKS), {"table": table})
        connection.exec_driver_sql(f"DROP TABLE {table}")
