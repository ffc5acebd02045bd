"""Columns of the base tables as SQL expressions: UTC, in range, and ordered by their bytes.

Base tables may have ids, times and texts of several types (docs/spec.md §1). Every statement of
ours takes their values from here, in one form. Which rows it takes is decided in `selections`.

A column that is searched is written bare (`a.test_id`), so that an index on it can be used. A value
that is passed on is written as `comparable`, with the collation of the database: whatever collation
the column has, it can then be compared with the value of any other table.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

from mcq_analytics.compute.judged_answers import SESSION_EXPIRY
from mcq_analytics.model.base_tables import BASE_COLUMNS, Role
from mcq_analytics.model.facts import STUDENT_TEST, IdType
from mcq_analytics.postgres.identifiers import quoted
from mcq_analytics.postgres.inspection import BaseTables

ALIASES = {"answers": "a", "questions": "q", "sessions": "s", "submissions": "b"}

LONGEST_KEY = 2_600
"""Bytes that the ids of a row may have together. An index entry of PostgreSQL holds 2,704 bytes,
which must also take the entry's header, an hour, and the padding of each id."""

EARLIEST = "CAST('0001-01-01 00:00:00+00' AS timestamptz)"
LATEST = "CAST('9999-12-31 23:59:59.999999+00' AS timestamptz)"
"""The range of times that PostgreSQL, Arrow, Spark and Python all hold; others are clamped."""

_EVER = "CAST('0001-12-31 00:00:00+00 BC' AS timestamptz)"
"""Before every answer: the expiry of a session that had always expired."""


@dataclass(frozen=True)
class BaseColumns:
    """Expressions over the columns of given base tables, under the aliases `ALIASES`."""

    base: BaseTables

    def select_list(self, table: str, *, as_sent: bool = False) -> str:
        """Return all columns of a base table, in the form that every statement takes them.

        Times are timestamptz in the range above; options and statuses are text. Texts that are
        ordered have the collation "C", the order of bytes. `as_sent` is the form for Spark, in
        which a uuid is text, and the ids of a student's test have one type in both tables.
        """
        return ", ".join(
            f"{self._value(table, column, role, as_sent=as_sent)} AS {quoted(column)}"
            for column, role in BASE_COLUMNS[table].items()
        )

    def time(self, table: str, column: str) -> str:
        """Return a time that is not null as timestamptz, clamped to the range above."""
        return f"least(greatest({self._moment(table, column)}, {EARLIEST}), {LATEST})"

    def session_expiry(self) -> str:
        """Return the expiry of a session from all its rows, null for never."""
        return SESSION_EXPIRY.format(expiry_time=self._expiry_time())

    def comparable_ids(self, table: str) -> SimpleNamespace:
        """Return the ids of a base table by column name, each as `comparable`."""
        return SimpleNamespace(
            **{
                column: comparable(
                    f"{ALIASES[table]}.{quoted(column)}", self.base.id_type(table, column)
                )
                for column, role in BASE_COLUMNS[table].items()
                if role is Role.ID
            }
        )

    def ids_fit(self, table: str, columns: tuple[str, ...]) -> str:
        """Return whether ids fit into an index entry together; a null counts as fitting."""
        lengths = [
            f"coalesce(octet_length({ALIASES[table]}.{quoted(column)}), 0)"
            for column in columns
            if self.base.id_type(table, column) is IdType.TEXT
        ]
        if not lengths:
            return "true"
        return f"(CASE WHEN {' + '.join(lengths)} <= {LONGEST_KEY} THEN 1 END IS NOT NULL)"

    def in_window(self, table: str, column: str) -> str:
        """Return whether a time lies in the window. The bare column lets an index be used."""
        start, end = (
            self.searched(table, column, f"CAST(:window_{bound} AS timestamptz)")
            for bound in ("start", "end")
        )
        name = f"{ALIASES[table]}.{quoted(column)}"
        return f"({name} >= {start} AND {name} < {end})"

    def searched(self, table: str, column: str, moment: str) -> str:
        """Return a timestamptz expression in the type of a time column, to compare it bare."""
        return moment if self._is_zoned(table, column) else f"({moment} AT TIME ZONE 'UTC')"

    def _value(self, table: str, column: str, role: Role, *, as_sent: bool) -> str:
        name = f"{ALIASES[table]}.{quoted(column)}"
        if role is Role.TEXT:
            return f'CAST({name} AS text) COLLATE "C"'
        if column == "expiry_time":
            return self._expiry_time()
        if role is Role.TIME:
            return self.time(table, column)
        id_type = self.base.id_type(table, column)
        if column == "answer_id" and id_type is IdType.TEXT:
            return f'{name} COLLATE "C"'
        return self._sent(name, table, column) if as_sent else comparable(name, id_type)

    def _sent(self, name: str, table: str, column: str) -> str:
        id_type = self.base.id_type(table, column)
        if column in STUDENT_TEST and self.base.student_test_type(column) is not id_type:
            return f"CAST({name} AS bigint)"
        return id_as_sent(name, id_type)

    def _expiry_time(self) -> str:
        """Return the expiry of a row of `sessions`, null for never: Spark has no infinite times."""
        moment = self._moment("sessions", "expiry_time")
        return (
            f"CASE WHEN {moment} = '-infinity' THEN {_EVER} "
            f"WHEN {moment} < 'infinity' THEN {self.time('sessions', 'expiry_time')} END"
        )

    def _moment(self, table: str, column: str) -> str:
        name = f"{ALIASES[table]}.{quoted(column)}"
        return name if self._is_zoned(table, column) else f"({name} AT TIME ZONE 'UTC')"

    def _is_zoned(self, table: str, column: str) -> bool:
        return bool(getattr(self.base[table].c[column].type, "timezone", False))


def id_as_sent(name: str, id_type: IdType) -> str:
    """Return an id as it is sent to Spark: a uuid as text."""
    return f"CAST({name} AS text)" if id_type is IdType.UUID else name


def comparable(name: str, id_type: IdType) -> str:
    """Return an id with the database's own collation, to be compared with ids of any table."""
    return f'{name} COLLATE "default"' if id_type is IdType.TEXT else name
