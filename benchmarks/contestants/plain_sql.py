"""Two contestants in plain SQL: the floor, a full recompute, and a hand-written increment."""

from __future__ import annotations

from benchmarks.contestants.contestant import CHECKOUT, Contestant, Window, python_module
from benchmarks.datasets import SQL
from benchmarks.processes import Command

_EMPTY = "TRUNCATE plain.question_interaction_fact, plain.test_summary_fact, plain.test_funnel_fact"
_INDEXES = """
    CREATE INDEX ON plain.question_interaction_fact (test_id, question_id);
    CREATE INDEX ON plain.test_summary_fact (test_id);
"""


class _PlainSql(Contestant):
    def schema(self) -> str:
        """Return the schema of its facts."""
        return "plain"

    def _script(self, name: str, *bounds: str) -> Command:
        url = self.work.server.url()
        return Command(
            python_module("benchmarks.sql_job", url, str(SQL / name), *bounds), {}, CHECKOUT
        )


class Floor(_PlainSql):
    """All facts from all base rows, into empty tables with primary keys, whatever the window."""

    name = "floor"
    title = "plain SQL, full recompute"
    runs_again = False

    def fill(self, window: Window) -> None:
        """Do nothing: it always starts from empty tables."""

    def command(self, window: Window, *, into_empty: bool = False) -> Command:
        """Return the command that computes a window."""
        return self._script("recompute.sql")


class Increment(_PlainSql):
    """What a careful engineer writes by hand for one window."""

    name = "increment"
    title = "hand-written SQL increment"

    def prepare_empty(self, window: Window) -> None:
        """Empty its facts, and give them the indexes that it needs."""
        self.work.server.run(f"{_EMPTY}; {_INDEXES}")

    def fill(self, window: Window) -> None:
        """Compute the past."""
        self.prepare_empty(window)
        self._do(self._script("recompute.sql"))

    def command(self, window: Window, *, into_empty: bool = False) -> Command:
        """Return the command that computes a window."""
        bounds = window.start.isoformat(), window.end.isoformat()
        return self._script("increment.sql", *bounds)
