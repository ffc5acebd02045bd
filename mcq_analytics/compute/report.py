"""The report of an attempt: row counts and seconds, which the IO manager shows with the run."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from time import monotonic

from mcq_analytics.compute.difference import MergeCounts
from mcq_analytics.model.facts import FACTS


@dataclass
class AttemptReport:
    """Row counts of an attempt, and its seconds by phase.

    `rows_read` counts base rows, and `touched` the students' tests that the window touches. By
    fact, `fact_rows` are the rows that belong to these, `counts` those that changed, and
    `overviews` Markdown for people. `left_out` counts base rows that no fact can hold, `duplicates`
    the ids in the window that have several rows in `questions` or `sessions`. Every hour from the
    first one up to `watermark` is computed.
    """

    rows_read: int = 0
    touched: int = 0
    fact_rows: dict[str, int] = field(default_factory=dict)
    counts: dict[str, MergeCounts] = field(
        default_factory=lambda: {fact.name: MergeCounts() for fact in FACTS}
    )
    overviews: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    duplicates: dict[str, int] = field(default_factory=dict)
    watermark: datetime | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    _clock: float = field(default_factory=monotonic, repr=False)

    def phase_ended(self, phase: str) -> None:
        """Note the seconds since the last phase ended, or since the report was made."""
        now = monotonic()
        self.seconds[phase] = round(now - self._clock, 3)
        self._clock = now
