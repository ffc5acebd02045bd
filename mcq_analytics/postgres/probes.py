"""Whether indexes find the rows of a base table by key, by the plans that the server makes.

A probe reads the rows of one key, once per key. It costs what it finds if an index leads there, and
a scan of the table otherwise. Plans tell which, also for views and partitions; the planner's choice
among several indexes is part of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

from sqlalchemy import Connection, String, Table, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TypeEngine

from mcq_analytics.model.facts import STUDENT_TEST
from mcq_analytics.postgres.identifiers import quoted


class Probe(Enum):
    """The condition of a probe: the template of a comparison per column of the key.

    The second column of `BY_FIRST` cannot use an index, so that one on that column alone, which
    would read a whole test for each of its students, is never taken.
    """

    BY_KEY = ("{column} = {key}", "{column} = {key}")
    BY_FIRST = ("{column} = {key}", "{column} IS NOT DISTINCT FROM {key}")

    def condition(self, columns: Mapping[str, str]) -> str:
        """Return the condition over expressions of a key's parts, by qualified column."""
        return " AND ".join(
            template.format(column=column, key=key)
            for template, (column, key) in zip(self.value, columns.items(), strict=False)
        )


_PROBED: Mapping[str, tuple[str, ...]] = {
    "answers": STUDENT_TEST,
    "submissions": STUDENT_TEST,
    "sessions": ("session_id",),
    "questions": ("question_id",),
}

_EXPLAIN = """
    EXPLAIN (FORMAT JSON, VERBOSE)
    SELECT FROM (SELECT {keys} FROM {markers} OFFSET 0) probed_key
    CROSS JOIN LATERAL (SELECT FROM {table} probed WHERE {condition} OFFSET 0) found
"""

_SCANS_BY_INDEX = ("Index Scan", "Index Only Scan", "Bitmap Index Scan")
_SCANS_OF_TABLES = ("Seq Scan", "Sample Scan", "Tid Scan", "Tid Range Scan")


def probes(connection: Connection, tables: Mapping[str, Table]) -> dict[str, Probe]:
    """Return by base table the probe that an index serves; tables without one are left out.

    For answers and submissions the key is a student's test.
    """
    found = {}
    connection.execute(text("SET LOCAL enable_seqscan = off"))
    for name, columns in _PROBED.items():
        for probe in Probe:
            if _is_served(connection, tables[name], columns, probe):
                found[name] = probe
                break
    connection.execute(text("SET LOCAL enable_seqscan TO DEFAULT"))
    return found


def _is_served(
    connection: Connection, table: Table, columns: tuple[str, ...], probe: Probe
) -> bool:
    types = {column: _type_of_key(table.c[column].type) for column in columns}
    statement = _EXPLAIN.format(
        # Plans name the parts of the key by these functions.
        markers=", ".join(f"generate_series(1, 2) AS key_{part}" for part in range(len(columns))),
        keys=", ".join(
            f"CAST(CAST(key_{part} AS text) AS {sql}) AS {quoted(name)}"
            for part, (name, sql) in enumerate(types.items())
        ),
        table=quoted(table.schema or "public", table.name),
        condition=probe.condition(
            {f"probed.{quoted(name)}": f"probed_key.{quoted(name)}" for name in columns}
        ),
    )
    plan = connection.execute(text(statement)).scalar_one()
    nodes = list(_nodes(plan[0]["Plan"]))
    return not any(node["Node Type"] in _SCANS_OF_TABLES for node in nodes) and all(
        _leads_to_key(connection, node) for node in nodes if node["Node Type"] in _SCANS_BY_INDEX
    )


def _type_of_key(column: TypeEngine[Any]) -> str:
    """Return the type that keys have when they come back: texts without the column's collation."""
    return "text" if isinstance(column, String) else column.compile(postgresql.dialect())


def _leads_to_key(connection: Connection, scan: Mapping[str, Any]) -> bool:
    """Return whether an index scan starts at the rows of a key, or of its first column."""
    condition = scan.get("Index Cond", "")
    leading = connection.execute(
        text(
            "SELECT pg_get_indexdef(c.oid, 1, true) FROM pg_class c "
            "JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_index i ON i.indexrelid = c.oid "
            "JOIN pg_class t ON t.oid = i.indrelid WHERE c.relname = :index "
            "AND t.relname = coalesce(:table, t.relname) "
            "AND n.nspname = coalesce(:schema, n.nspname)"
        ),
        {
            "index": scan["Index Name"],
            "table": scan.get("Relation Name"),
            "schema": scan.get("Schema"),
        },
    ).scalars()
    return "key_0" in condition and all(
        re.search(rf"\.{re.escape(column)}\)?(::[\w ]+)? = \(*key_", condition)
        for column in leading
    )


def _nodes(plan: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from _nodes(below)
