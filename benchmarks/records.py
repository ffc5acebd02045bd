"""Looks results up for the page: one contestant's figures in one case, and ratios between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

TITLES = {
    "floor": "plain SQL, full recompute (the floor)",
    "increment": "hand-written SQL increment",
    "dbt": "dbt microbatch",
    "sqlmesh": "SQLMesh",
    "mcq": "this project",
    "warm": "this project, warm Spark server",
}
SHORT = {
    **TITLES,
    "floor": "full recompute",
    "increment": "SQL increment",
    "warm": "this project, warm server",
}
OURS = "mcq"
WARM = "warm"
COLOURS = {
    SHORT["floor"]: "#9a9a9a",
    SHORT["increment"]: "#4c78a8",
    SHORT["dbt"]: "#f58518",
    SHORT["sqlmesh"]: "#54a24b",
    SHORT[OURS]: "#c0397b",
    SHORT[WARM]: "#e58ab5",
}


@dataclass(frozen=True)
class Row:
    """The figures of a contestant in a case."""

    record: Mapping[str, Any]

    def __getattr__(self, name: str) -> Any:
        return self.record[name]

    @property
    def median_seconds(self) -> float | None:
        """Seconds from start to exit; None if the run was stopped."""
        return median(self.seconds) if self.seconds else None

    @property
    def took(self) -> str:
        """The seconds for people, with their range if there were several runs."""
        if self.failed:
            return "failed"
        if not self.seconds:
            return f"> {self.stopped_after:,.0f} s"
        spread = f" ({min(self.seconds):.1f} to {max(self.seconds):.1f})"
        return f"{median(self.seconds):.1f} s" + (spread if len(self.seconds) > 1 else "")

    @property
    def database_seconds(self) -> float | None:
        """Seconds of statements in the database."""
        return median(self.database_ms) / 1000 if self.database_ms else None

    @property
    def again_database_seconds(self) -> float | None:
        """The same when the window ran again."""
        return median(self.again_database_ms) / 1000 if self.again_database_ms else None

    @property
    def peak_gb(self) -> float | None:
        """Peak memory of the processes of the run, without the server's."""
        return max(self.peak_bytes) / 2**30 if self.peak_bytes else None

    @property
    def service_peak_gb(self) -> float | None:
        """Peak memory of what stays up between the runs; results of old may not have it."""
        peaks = self.record.get("service_peak_bytes")
        return max(peaks) / 2**30 if peaks else None

    @property
    def wrong(self) -> str:
        """The largest number of wrong rows in any run."""
        return f"{max(self.wrong_rows):,}" if self.wrong_rows else "\N{EN DASH}"

    @property
    def fetched_rows(self) -> int:
        """All rows that the server fetched from tables."""
        return sum(self.fetched.values())

    @property
    def fetched_base_rows(self) -> int:
        """Those of them that came from base tables."""
        return sum(rows for name, rows in self.fetched.items() if name.startswith("public."))

    @property
    def phase_seconds(self) -> dict[str, float]:
        """The median seconds of each phase."""
        names: dict[str, None] = {}
        for run in self.phases:
            names |= dict.fromkeys(run)
        return {name: median(run.get(name, 0.0) for run in self.phases) for name in names}


class Records:
    """All results, in the order of contestants."""

    def __init__(self, stored: Mapping[str, Any]) -> None:
        self.sessions: Mapping[str, Any] = stored["sessions"]
        self._rows = [Row(record) for record in stored["results"]]
        order = list(TITLES)
        self._rows.sort(key=lambda row: order.index(row.contestant))

    def rows(self, measure: str, **wanted: Any) -> list[Row]:
        """Return the rows of a measure whose fields have the wanted values."""
        return [
            row
            for row in self._rows
            if row.measure == measure
            and all(row.record[name] == value for name, value in wanted.items())
        ]

    def row(self, measure: str, contestant: str, **wanted: Any) -> Row | None:
        """Return the row of a contestant, if it was measured."""
        found = self.rows(measure, contestant=contestant, **wanted)
        return found[0] if found else None

    def loads(self, session: str) -> list[float]:
        """Return the load averages at which the results of a session were measured."""
        return [row.load for row in self._rows if row.session == session and row.load]

    def sizes(self, measure: str) -> list[int]:
        """Return the numbers of answers at which it was measured, ascending."""
        return sorted({row.answers for row in self._rows if row.measure == measure})


def ratio(one: float | None, other: float | None) -> float | None:
    """Return how many times the other a value is."""
    return one / other if one is not None and other else None


def times(value: float | None) -> str:
    """Return a ratio for people."""
    return (
        "\N{EN DASH}"
        if value is None
        else f"{value:,.2f} \N{MULTIPLICATION SIGN}"
        if value < 10
        else f"{value:,.0f} \N{MULTIPLICATION SIGN}"
    )


def decimal(value: float | None, unit: str) -> str:
    """Return a value with a decimal, or two if it is small."""
    return "\N{EN DASH}" if value is None else f"{value:,.{2 if value < 1 else 1}f} {unit}"


def millions(answers: int) -> str:
    """Return a number of answers for people."""
    return f"{answers / 1e6:g} million" if answers >= 1_000_000 else f"{answers:,}"


def table(head: Sequence[str], body: Iterable[Sequence[str]], texts: int = 1) -> list[str]:
    """Return the lines of a Markdown table: first columns of text, then columns of figures."""
    align = ["---"] * texts + ["---:"] * (len(head) - texts)
    return [f"| {' | '.join(cells)} |" for cells in (head, align, *body)] + [""]
