"""What each step of a generated sequence does to the hours of the facts, without any code of ours.

`agreement_steps` carries the steps out; `agreement_looks` compares the model with the reports.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime

from mcq_analytics.alerting.state import CHECK, LIVE
from mcq_analytics.model.facts import FACTS
from mcq_analytics.model.windows import HOUR, Window

HOURS = 12
NAMES = tuple(fact.name for fact in FACTS)
FUNNEL = "test_funnel_fact"
ALL = "the facts"
"""Runs fail for all facts, and so do their incidents."""
SUCCESS, FAILED = "success", "failed"
ALL_FAIL = 3
"""If so many windows failed in a row, they are not halved."""

HoursByFact = dict[str, set[datetime]]


@dataclass(frozen=True)
class Step:
    """What happens to a run over some of the hours.

    `fact` is the one that is found wrong, or whose success cannot be recorded, if any. `known` is
    the number of facts that Dagster knows of when a process dies after its commit. `first_look`
    names who is asked first after the step.
    """

    kind: str
    first: int
    hours: int
    fact: str = FUNNEL
    known: int = 0
    first_look: str = "status"


@dataclass(eq=False)
class Run:
    """A run as Dagster knows it: in progress, passed, failed or cancelled.

    `known` are the facts that Dagster knows it has materialized, before it ended.
    """

    window: Window
    run_id: str = ""
    state: str = "in progress"
    known: tuple[str, ...] = ()


@dataclass
class Hour:
    """The state of an hour. `latest` is the run by which Dagster judges it, if any.

    `wrong` and `materialized` are facts.
    """

    status: str | None = None
    is_cancelled: bool = False
    wrong: frozenset[str] = frozenset()
    failed_in: Window | None = None
    latest: Run | None = None
    materialized: frozenset[str] = frozenset()
    changed: bool = False

    @property
    def is_bad(self) -> bool:
        return self.status == FAILED or bool(self.wrong)

    @property
    def is_wanted(self) -> bool:
        return not self.is_cancelled and (self.status != SUCCESS or bool(self.wrong))

    @property
    def has_failed_before_it_was_cancelled(self) -> bool:
        """Whether Dagster keeps the failure only if its pages were opened in between."""
        was_cancelled = self.latest is not None and self.latest.state == "cancelled"
        return self.status == FAILED and was_cancelled

    @property
    def has_failed_in_dagster(self) -> bool:
        return self.latest is not None and self.latest.state == FAILED

    def by_dagster(self, name: str) -> str | None:
        if self.latest is not None and name not in self.latest.known:
            if self.latest.state == "in progress":
                return "IN_PROGRESS"
            if self.latest.state == FAILED:
                return "FAILED"
        return "MATERIALIZED" if name in self.materialized else None


@dataclass
class Model:
    """The true state of all hours, by the meaning of the steps."""

    first: datetime
    hours: dict[datetime, Hour] = field(default_factory=dict)
    in_a_row: set[Window] = field(default_factory=set)
    runs: list[Run] = field(default_factory=list)
    incidents: dict[str, HoursByFact] = field(default_factory=dict)
    bad: dict[str, HoursByFact] = field(default_factory=dict)
    was_away: bool = False

    def __post_init__(self) -> None:
        self.hours = {self.first + n * HOUR: Hour() for n in range(HOURS)}
        for kind, names in ((LIVE, (ALL,)), (CHECK, NAMES)):
            self.incidents[kind] = {name: set() for name in names}
            self.bad[kind] = {name: set() for name in names}

    def cover(self, closed: datetime) -> None:
        """Add the hours that have closed since."""
        while max(self.hours) + HOUR < closed:
            self.hours[max(self.hours) + HOUR] = Hour()

    def which(self, holds: Callable[[Hour], bool]) -> set[datetime]:
        return {start for start, hour in self.hours.items() if holds(hour)}

    def wrong(self) -> HoursByFact:
        return {
            name: {start for start, hour in self.hours.items() if name in hour.wrong}
            for name in NAMES
        }

    def in_progress(self) -> list[Run]:
        return [run for run in self.runs if run.state == "in progress"]

    def busy(self) -> set[datetime]:
        return {start for run in self.in_progress() for start in run.window.starts()}

    def begin(self, window: Window) -> Run:
        """Note that a run is requested."""
        run = Run(window)
        self.runs.append(run)
        for hour in self.over(run):
            hour.latest = run
        return run

    def over(self, run: Run) -> Iterator[Hour]:
        return (self.hours[start] for start in run.window.starts())

    def commits(self, run: Run, known: tuple[str, ...]) -> None:
        """Note that a run has stored the facts; Dagster knows of some of them yet."""
        self.in_a_row.clear()
        run.known = known
        for hour in self.over(run):
            hour.status, hour.is_cancelled, hour.changed = SUCCESS, False, False
            hour.materialized |= {*known}
            if known == NAMES:
                hour.latest = None

    def passes(self, run: Run, wrong: str | None = None) -> None:
        """Note that a run has stored the facts; a check may find one of them `wrong`."""
        self.commits(run, NAMES)
        run.state = FAILED if wrong else SUCCESS
        for hour in self.over(run):
            hour.wrong = frozenset([wrong] if wrong else [])

    def fails(self, run: Run) -> None:
        """Note that a run failed: it stored nothing, or died before Dagster knew all of it."""
        run.state = FAILED
        self.in_a_row.add(run.window)
        for hour in self.over(run):
            hour.status, hour.is_cancelled, hour.failed_in = FAILED, False, run.window

    def is_cancelled(self, run: Run) -> None:
        """Note that somebody stopped a run: its hours keep their state."""
        run.state = "cancelled"
        for hour in self.over(run):
            if hour.latest is run:
                hour.is_cancelled = True

    def wanted(self) -> set[datetime]:
        return self.which(lambda hour: hour.is_wanted) - self.busy()

    def failed_beside_others(self) -> set[datetime]:
        if len(self.in_a_row) >= ALL_FAIL:
            return set()
        return self.wanted() & self.which(
            lambda hour: (
                hour.status == FAILED and hour.failed_in is not None and hour.failed_in.hours > 1
            )
        )

    def open_incidents(self) -> dict[str, HoursByFact]:
        """Return the hours of the open incidents as of now."""
        failed = self.which(lambda hour: hour.has_failed_in_dagster)
        settled = self.which(lambda hour: hour.latest is None)
        wrong = {**self.wrong(), ALL: self.which(lambda hour: bool(hour.wrong))}
        found: dict[str, HoursByFact] = {LIVE: {ALL: failed}, CHECK: self.wrong()}
        for kind, needed in ((LIVE, 2), (CHECK, 1)):
            known, bad = self.incidents[kind], self.bad[kind]
            for name in known:
                good = settled - wrong[name]
                bad[name] = (bad[name] - good) | (known[name] & (failed | wrong[name]))
            if not any(bad.values()):
                known.update((name, set()) for name in known)
            for name, hours in found[kind].items():
                new = in_rows_of(needed, hours)
                known[name] |= new
                bad[name] |= new
        return self.incidents


def in_rows_of(needed: int, hours: set[datetime]) -> set[datetime]:
    """Return the hours that stand in a row of at least `needed`, which is 1 or 2."""
    return {hour for hour in hours if needed == 1 or {hour - HOUR, hour + HOUR} & hours}
