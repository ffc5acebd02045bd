"""Which row of a COPY the server refused, read from the fields of its error, in any language."""

from __future__ import annotations

import re
from dataclasses import dataclass

from adbc_driver_manager import Error as AdbcError

# Classes of SQLSTATE. Connections, transactions, resources, operators and the system fail whatever
# the rows are; a statement that is wrong or not permitted, and an internal error, are a row's fault
# only where the server names the row (a policy of row level security, a trigger).
_OF_NO_ROW = frozenset({"08", "25", "28", "40", "53", "55", "57", "58"})
_OF_A_NAMED_ROW = frozenset({"42", "XX"})


@dataclass(frozen=True)
class Refusal:
    """What the server says of a row that it refused.

    `row` is its number in the COPY, counted from 1. Constraints that are checked later have none,
    but a `detail` that quotes the key, as ``Key (test_id)=(5) is not present in table "tests".``
    """

    table: str
    row: int | None
    detail: str

    @property
    def key_columns(self) -> tuple[str, ...]:
        """The columns of the key that the detail quotes; none where it quotes none."""
        # The server translates the words about the key, and leaves the key as it is.
        found = re.search(r"\(([^()]+)\)=\(", self.detail)
        return tuple(name.strip('"') for name in found.group(1).split(", ")) if found else ()

    def quotes(self, values: tuple[str, ...]) -> bool:
        """Return whether the detail quotes these values of the key's columns."""
        return f")=({', '.join(values)})" in self.detail


def refusal(error: AdbcError, copying: str | None) -> Refusal | None:
    """Return what an error says of a refused row; None where it is about something else.

    `copying` is the table whose COPY was under way, if one was.
    """
    kind = (error.sqlstate or "")[:2]
    if not kind.strip("\0") or kind in _OF_NO_ROW:
        return None
    fields = {_text(key): _text(value) for key, value in error.details}
    row = _row_of_copy(fields.get("PG_DIAG_CONTEXT", ""), copying) if copying else None
    if row is None and kind in _OF_A_NAMED_ROW:
        return None
    # The error may name another table, a partition or one that a trigger fills, and yet the row
    # that is copied is the cause. After the last COPY, of deferred constraints, it names the table.
    table = copying or fields.get("PG_DIAG_TABLE_NAME")
    return Refusal(table, row, fields.get("PG_DIAG_MESSAGE_DETAIL", "")) if table else None


def _row_of_copy(context: str, table: str) -> int | None:
    """Return the row that COPY was at.

    No field of the error has it, only the text of its context: ``COPY answers, line 2``. COPY is
    the outermost context, thus the last line. In all translations of the server that line begins
    with the table, or with COPY and the table, and the row is the first number after it.
    """
    last = context.splitlines()[-1:]
    found = re.match(rf"(?:COPY )?{re.escape(table)}[^0-9]+([0-9]+)", last[0]) if last else None
    return int(found.group(1)) if found else None


def _text(field: str | bytes) -> str:
    return field if isinstance(field, str) else field.decode("utf-8", "replace")
