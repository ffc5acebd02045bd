"""Finds the row that made the server refuse a COPY, whatever language its error is in."""

from __future__ import annotations

import re
from dataclasses import dataclass

from adbc_driver_manager import Error as AdbcError

# Classes of SQLSTATE. Failures of connections, transactions, resources, operators and the system
# have nothing to do with rows. A wrong or forbidden statement, or an internal error, is the fault
# of a row only if the server names the row (row level security, a trigger).
_OF_NO_ROW = frozenset({"08", "25", "28", "40", "53", "55", "57", "58"})
_OF_A_NAMED_ROW = frozenset({"42", "XX"})


@dataclass(frozen=True)
class Refusal:
    """The server's error about a row that it refused.

    `row` is its number in the COPY, counted from 1. Constraints that are checked later give no
    number, but a `detail` that quotes the key: ``Key (test_id)=(5) is not present in table
    "tests".``
    """

    table: str
    row: int | None
    detail: str

    @property
    def key_columns(self) -> tuple[str, ...]:
        """The columns of the key that the detail quotes; empty if it quotes none."""
        # The server translates the words around the key, not the key.
        found = re.search(r"\(([^()]+)\)=\(", self.detail)
        return tuple(name.strip('"') for name in found.group(1).split(", ")) if found else ()

    def quotes(self, values: tuple[str, ...]) -> bool:
        """Return whether the detail quotes these values of the key's columns."""
        return f")=({', '.join(values)})" in self.detail


def refusal(error: AdbcError, copying: str | None) -> Refusal | None:
    """Return the refusal that an error reports; None if the error is not about a row.

    `copying` is the table that COPY was writing to, if any.
    """
    kind = (error.sqlstate or "")[:2]
    if not kind.strip("\0") or kind in _OF_NO_ROW:
        return None
    fields = {_text(key): _text(value) for key, value in error.details}
    row = _row_of_copy(fields.get("PG_DIAG_CONTEXT", ""), copying) if copying else None
    if row is None and kind in _OF_A_NAMED_ROW:
        return None
    # During a COPY the copied row is the cause, even if the error names another table: a partition,
    # or one that a trigger fills. Later, errors of deferred constraints name the table.
    table = copying or fields.get("PG_DIAG_TABLE_NAME")
    return Refusal(table, row, fields.get("PG_DIAG_MESSAGE_DETAIL", "")) if table else None


def _row_of_copy(context: str, table: str) -> int | None:
    """Return the row that COPY was at.

    Only the text of the error's context has it: ``COPY answers, line 2``. COPY is the outermost
    context, so it is the last line. In all translations of the server that line starts with the
    table, or with COPY and the table, and the row is the first number after it.
    """
    last = context.splitlines()[-1:]
    found = re.match(rf"(?:COPY )?{re.escape(table)}[^0-9]+([0-9]+)", last[0]) if last else None
    return int(found.group(1)) if found else None


def _text(field: str | bytes) -> str:
    return field if isinstance(field, str) else field.decode("utf-8", "replace")
