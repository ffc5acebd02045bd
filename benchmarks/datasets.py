"""The data: shapes and sizes of base tables, and the databases that hold them.

`sql/data.sql` says what is drawn. A dataset is kept as a template database with the base tables up
to the hours to measure; the rows of those hours wait in its schema `later`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from benchmarks.server import DATABASE, Server

EMPTY = "empty"
"""The database with empty base tables and facts, of which all datasets are made."""

SQL = Path(__file__).parent / "sql"

START = datetime(2024, 1, 1, tzinfo=timezone.utc)
HOUR = timedelta(hours=1)
HOURS = 720
MEASURED = START + (HOURS - 24) * HOUR
"""The first of the hours to measure: one hour, or the 24 hours up to the end."""
END = START + HOURS * HOUR
QUESTIONS_PER_TEST = 20
HOURLY_ANSWERS_AT_2M = 2_778


@dataclass(frozen=True)
class Shape:
    """How many tests there are, and how many of them each student takes."""

    name: str
    tests: int
    tests_per_student: int


MANY = Shape("many", 500, 20)
LARGE = Shape("large", 5, 5)
SHAPES = {shape.name: shape for shape in (MANY, LARGE)}


@dataclass(frozen=True)
class Dataset:
    """A shape and a number of answers; `hourly` sets the rate of the hours to measure apart."""

    shape: Shape
    answers: int
    hourly: int | None = None

    @property
    def name(self) -> str:
        """Name of its template database."""
        rate = "" if self.hourly is None else f"_{self.hourly}"
        return f"{self.shape.name}_{self.answers}{rate}"

    def parameters(self) -> dict[str, object]:
        """Return the parameters of `sql/data.sql`."""
        sittings = self.answers / QUESTIONS_PER_TEST
        # Present sittings begin three hours before the hours to measure, past ones until then.
        past = sittings if self.hourly is not None else sittings * (HOURS - 27) / HOURS
        hourly = self.hourly if self.hourly is not None else self.answers / HOURS
        return {
            "tests": self.shape.tests,
            "tests_per_student": self.shape.tests_per_student,
            "past": round(past),
            "present": max(1, round(hourly / QUESTIONS_PER_TEST)),
            "start": START,
            "measured": MEASURED,
        }


def script(name: str) -> str:
    """Return the text of a script under `sql`."""
    return (SQL / name).read_text()


def load(server: Server, dataset: Dataset) -> None:
    """Make the template of a dataset from the database whose base tables are empty.

    Indexes are created after the rows, as they were before them.
    """
    server.create(DATABASE, EMPTY)
    with server.connection() as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index "
            "JOIN pg_class ON pg_class.oid = indrelid "
            "WHERE relnamespace = 'public'::regnamespace AND NOT indisprimary"
        )
        indexes = cursor.fetchall()
        for name, _ in indexes:
            cursor.execute(f"DROP INDEX {name}")
        cursor.execute(script("data.sql"), dataset.parameters())
        for _, statement in indexes:
            cursor.execute(statement)
        cursor.execute(script("tables.sql"))
        cursor.execute("VACUUM ANALYZE")
    server.create(dataset.name, DATABASE)


def arrive(server: Server, until: datetime) -> None:
    """Let the rows before a time arrive in the base tables."""
    server.run(script("arrive.sql"), {"until": until})
