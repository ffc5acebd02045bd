"""SQL text, quoted as PostgreSQL needs it: names of tables and columns, and arrays of ids."""

from __future__ import annotations

import re
from collections.abc import Iterable

from sqlalchemy.dialects import postgresql

_preparer = postgresql.dialect().identifier_preparer


def quoted(*names: str) -> str:
    """Return a name quoted where PostgreSQL needs it; several parts give a qualified name.

    >>> quoted("analytics", "Odd table")
    'analytics."Odd table"'
    """
    return ".".join(_preparer.quote(name) for name in names)


def quoted_array(ids: Iterable[object]) -> str:
    """Return ids as a literal of an array, whatever settings the server has for literals.

    >>> print(quoted_array([1, "d'A"]))
    E'{"1","d''A"}'
    """
    elements = ",".join('"' + re.sub(r'(["\\])', r"\\\1", str(one)) + '"' for one in ids)
    escaped = f"{{{elements}}}".replace("\\", "\\\\").replace("'", "''")
    return f"E'{escaped}'"
