"""What each step of a generated sequence does to the hours of the facts, without any code of ours.

`agreement_steps` carries the steps out; `agreement_looks` compares the model with the reports.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from mcq_analytics.alerting.state import CHECK, LIVE
from mcq_analytics.model.facts import FACTS
from mcq_analytics.model.windows import HOUR, Window

HOURS = 12
NAMES = tuple(fact.name for fact in FACTS)
FUNNEL = "test_funnel_fact"
SUCCESS, FAILED = "success", "failed"
ALL_FAIL = 3
"""If so many windows of a fact failed in a row, they are not halved."""

HoursByFact = dict[str, set[datetime]]


@dataclass(frozen=True)
class Step:
    """What happens to a run over some of the hours. `fact` is the one that fails or waits, if any.

    `first_look` names who is asked first after the step.
    """

    kind: str
    first: int
    hours: int
    facts: tuple[str, ...] = NAMES
    fact: str = NAMES[0]
    first_look: str = "status"


@dataclass(eq=False)
class Run:
    """A run as Dagster knows it: in progress, passed, failed or cancelled."""

    window: Window
    facts: tuple[str, ...]
    run_id: str = ""
    state: str = "in progress"


@dataclass
class Hour:
    """The state of an hour of a fact. `latest` is the run by which Dagster judges it, if any."""

    status: str | None = None
    is_cancelled: bool = False
    is_wrong: bool = False
    failed_in: Window | None = None
    latest: Run | None = None
    materialized: bool = False
    changed: bool = False

    @property
    def is_wanted(self) -> bool:
        return not self.is_cancelled and (self.status != SUCCESS or self.is_wrong)

    @property
    def has_failed_before_it_was_cancelled(self) -> bool:
        """Whether Dagster keeps the failure only if its pages were opened in between."""
        was_cancelled = self.latest is not None and self.latest.state == "cancelled"
        return self.status == FAILED and was_cancelled

    @property
    def by_dagster(self) -> str | None:
        if self.latest is not None and self.latest.state in ("in progress", FAILED):
            return "IN_PROGRESS" if self.latest.state == "in progress" else "FAILED"
        return "MATERIALIZED" if self.materialized else None


@dataclass
class Model:
    """The true state of all hours, by the meaning of the steps."""

    first: datetime
    hours: dict[str, dict[datetime, Hour]] = field(default_factory=dict)
    in_a_row: dict[str, set[Window]] = field(
        default_factory=lambda: {name: set() for name in NAMES}
    )
    runs: list[Run] = field(default_factory=list)
    incidents: dict[str, HoursByFact] = field(default_factory=dict)
    bad: dict[str, HoursByFact] = field(default_factory=dict)
    was_away: bool = False

    def __post_init__(self) -> None:
        self.hours = {name: {self.first + n * HOUR: Hour() for n in range(HOURS)} for name in NAMES}

    def cover(self, closed: datetime) -> None:
        """Add the hours that have closed since."""
        for hours in self.hours.values():
            while max(hours) + HOUR < closed:
                hours[max(hours) + HOUR] = Hour()

    def which(self, holds: Callable[[Hour], bool]) -> HoursByFact:
        return {
            name: {start for start, hour in hours.items() if holds(hour)}
            for name, hours in self.hours.items()
        }

    def in_progress(self) -> list[Run]:
        return [run for run in self.runs if run.state == "in progress"]

    def busy(self) -> HoursByFact:
        busy: HoursByFact = {name: set() for name in NAMES}
        for run in self.in_progress():
            for name in run.facts:
                busy[name].update(run.window.starts())
        return busy

    def begin(self, window: Window, facts: Sequence[str]) -> Run:
        """Note that a run is requested."""
        run = Run(window, tuple(facts))
        self.runs.append(run)
        for name in facts:
            for start in window.starts():
                self.hours[name][start].latest = run
        return run

    def over(self, run: Run, name: str) -> Iterator[Hour]:
        for start in run.window.starts():
            yield self.hours[name][start]

    def passes(self, run: Run, name: str, *, wrong: bool = False) -> None:
        self.in_a_row[name].clear()
        for hour in self.over(run, name):
            hour.status, hour.is_cancelled, hour.is_wrong = SUCCESS, False, wrong
            hour.materialized, hour.latest, hour.changed = True, None, False

    def fails(self, run: Run, name: str) -> None:
        self.in_a_row[name].add(run.window)
        for hour in self.over(run, name):
            hour.status, hour.is_cancelled, hour.failed_in = FAILED, False, run.window

    def is_cancelled(self, run: Run) -> None:
        """Note that somebody stopped a run: its hours keep their state."""
        run.state = "cancelled"
        for name in run.facts:
            for hour in self.over(run, name):
                if hour.latest is run:
                    hour.is_cancelled = True

    def wanted(self) -> HoursByFact:
        busy = self.busy()
        return {
            name: hours - busy[name]
            for name, hours in self.which(lambda hour: hour.is_wanted).items()
        }

    def failed_beside_others(self) -> HoursByFact:
        return {
            name: {
                start
                for start in hours
                if len(self.in_a_row[name]) < ALL_FAIL
                and self.hours[name][start].status == FAILED
                and (self.hours[name][start].failed_in or Window(start, start + HOUR)).hours > 1
            }
            for name, hours in self.wanted().items()
        }

    def open_incidents(self) -> dict[str, HoursByFact]:
        """Return the hours of the open incidents as of now."""
        failed = {
            LIVE: self.which(lambda hour: hour.by_dagster == "FAILED"),
            CHECK: self.which(lambda hour: hour.is_wrong),
        }
        good = self.which(lambda hour: hour.latest is None and not hour.is_wrong)
        for kind, needed in ((LIVE, 2), (CHECK, 1)):
            known = self.incidents.setdefault(kind, {name: set() for name in NAMES})
            bad = self.bad.setdefault(kind, {name: set() for name in NAMES})
            for name in NAMES:
                bad[name] = (bad[name] - good[name]) | (
                    known[name] & (failed[LIVE][name] | failed[CHECK][name])
                )
            if not any(bad.values()):
                known.update((name, set()) for name in NAMES)
            for name in NAMES:
                new = in_rows_of(needed, failed[kind][name])
                known[name] |= new
                bad[name] |= new
        return self.incidents


def in_rows_of(needed: int, hours: set[datetime]) -> set[datetime]:
    """Return the hours that stand in a row of at least `needed`, which is 1 or 2."""
    return {hour for hour in hours if needed == 1 or {hour - HOUR, hour + HOUR} & hours}
