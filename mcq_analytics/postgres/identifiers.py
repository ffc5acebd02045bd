"""SQL identifiers: table, schema and column names, quoted as PostgreSQL needs them."""

from __future__ import annotations

from sqlalchemy.dialects import postgresql

_preparer = postgresql.dialect().identifier_preparer


def quoted(*names: str) -> str:
    """Return a name quoted where PostgreSQL needs it; several parts give a qualified name.

    >>> quoted("analytics", "Odd table")
    'analytics."Odd table"'
    """
    return ".".join(_preparer.quote(name) for name in names)
