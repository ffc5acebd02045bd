"""The process of a contestant in plain SQL: one script in one transaction, then exit.

Usage: python -m benchmarks.sql_job URL SCRIPT [START END]
"""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

import psycopg2


def main() -> None:
    url, script, *bounds = sys.argv[1:]
    values = dict(zip(("start", "end"), bounds, strict=False))
    with (
        closing(psycopg2.connect(url)) as connection,
        connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(Path(script).read_text(), values or None)


if __name__ == "__main__":
    main()
