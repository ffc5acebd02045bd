"""The report of an attempt: row counts and seconds, which the IO manager shows with the run."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from time import monotonic

from mcq_analytics.compute.merge import MergeCounts


@dataclass
class AttemptReport:
    """Row counts of an attempt, and its seconds by phase.

    `rows_read` counts base rows, `fact_rows` the computed rows, and `touched` the keys that the
    window touches. `left_out` counts base rows that no fact can hold, `duplicates` the ids in the
    window that have several rows in `questions` or `sessions`. Every hour from the fact's first
    one up to `watermark` is computed. `overview` is Markdown for people.
    """

    rows_read: int = 0
    fact_rows: int = 0
    counts: MergeCounts = field(default_factory=lambda: MergeCounts(0, 0, 0))
    touched: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    duplicates: dict[str, int] = field(default_factory=dict)
    watermark: datetime | None = None
    overview: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    _clock: float = field(default_factory=monotonic, repr=False)

    def phase_ended(self, phase: str) -> None:
        """Note the seconds since the last phase ended, or since the report was made."""
        now = monotonic()
        self.seconds[phase] = round(now - self._clock, 3)
        self._clock = now
