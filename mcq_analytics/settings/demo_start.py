"""The first hour of a demo's sample, kept in a file under MCQ_HOME for every process there.

For the demo's database it is the default of `MCQ_PARTITION_START`.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

from sqlalchemy.engine import URL

from mcq_analytics.errors import McqError
from mcq_analytics.model.windows import format_hour
from mcq_analytics.settings.home import ready_home

FILE = "demo.json"
EMBEDDED = "embedded"


def note_start(home: Path, url: URL | None, start: datetime) -> bool:
    """Store the first hour of a database's demo; return whether it is new.

    Raises:
        McqError: the folder cannot be written to.

    """
    if noted_start(home, url) == format_hour(start):
        return False
    partial = ready_home(home) / f"{FILE}.new"
    partial.write_text(json.dumps({"database": _name(url), "start": format_hour(start)}) + "\n")
    partial.replace(home / FILE)
    return True


def noted_start(home: Path, url: URL | None) -> str | None:
    """Return the first hour of a database's demo, None if there was no demo.

    Raises:
        McqError: the file cannot be read.

    """
    path = home / FILE
    try:
        found = json.loads(path.read_text())
        return str(found["start"]) if found["database"] == _name(url) else None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise McqError(
            f"{path} cannot be read ({error}): remove it, or set MCQ_PARTITION_START"
        ) from None


def _name(url: URL | None) -> str:
    """Return a name for a database, without its password."""
    return EMBEDDED if url is None else url.set(password=None).render_as_string()
