"""One measured run: a fresh copy of a contestant's state, new rows, the command, and all counts."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from statistics import median

from benchmarks.contestants.contestant import Contestant, Window
from benchmarks.datasets import MEASURED, START, Dataset, arrive
from benchmarks.expected import Expected
from benchmarks.processes import FailedError, run
from benchmarks.server import DATABASE, Counters, Server

TOO_LONG_TO_REPEAT = 60.0
"""Seconds: a longer run is measured once."""

BASE_SCHEMA = "public"


@dataclass(frozen=True)
class Case:
    """What is measured: which rows have arrived, the window to compute, the state before it.

    `prepare` are statements that run in the fresh copy before the rows arrive. `once` means that
    nothing is timed. `without` are contestants who take no part.
    """

    measure: str
    dataset: Dataset
    window: Window
    into_empty: bool = False
    again: bool = False
    variant: str = ""
    prepare: tuple[str, ...] = ()
    once: bool = False
    without: tuple[str, ...] = ()


@dataclass
class Result:
    """The figures of a case and contestant: lists have one entry per run.

    `seconds` is empty if the run was stopped after `stopped_after` seconds, or failed. `fetched`
    and `written` are rows by table; `touched` are the answers and submissions of the students'
    tests that the window touches. `service_peak_bytes` are those of what the contestant keeps up
    between its runs. `load` is the load average before.
    """

    measure: str
    dataset: str
    shape: str
    answers: int
    variant: str
    contestant: str
    touched: int = 0
    seconds: list[float] = field(default_factory=list)
    stopped_after: float | None = None
    failed: bool = False
    load: float = 0.0
    wrong_rows: list[int] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)
    server_peak_bytes: list[int] = field(default_factory=list)
    service_peak_bytes: list[int] = field(default_factory=list)
    database_ms: list[float] = field(default_factory=list)
    fetched: dict[str, int] = field(default_factory=dict)
    written: dict[str, int] = field(default_factory=dict)
    phases: list[dict[str, float]] = field(default_factory=list)
    again_seconds: list[float] = field(default_factory=list)
    again_database_ms: list[float] = field(default_factory=list)
    again_written: dict[str, int] = field(default_factory=dict)

    def line(self) -> str:
        """Return the result in a line."""
        took = f"{median(self.seconds):.1f} s" if self.seconds else f"> {self.stopped_after} s"
        took = "failed" if self.failed else took
        wrong = f", {max(self.wrong_rows)} rows wrong" if self.wrong_rows else ""
        about = " ".join(filter(None, (self.measure, self.dataset, self.variant)))
        return f"{about}, {self.contestant}: {took}{wrong}"


class States:
    """Contestants' states before a case, as template databases; made when first needed."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._made: dict[str, tuple[Contestant, list[str]]] = {}

    def restore(self, case: Case, contestant: Contestant) -> None:
        """Make the database to measure in, with the contestant's state before the case."""
        name = f"{contestant.name}_{case.dataset.name}{'_empty' if case.into_empty else ''}"
        if name not in self._made:
            self._server.create(DATABASE, case.dataset.name)
            if case.into_empty:
                contestant.prepare_empty(case.window)
            else:
                contestant.fill(Window(START, MEASURED))
            self._server.run("VACUUM ANALYZE")
            self._server.create(name, DATABASE)
            copies = [name]
            for further in contestant.databases():
                self._server.create(f"{name}_{further}", further)
                copies.append(f"{name}_{further}")
            self._made[name] = contestant, copies
        self._server.create(DATABASE, name)
        for further in contestant.databases():
            self._server.create(further, f"{name}_{further}")

    def forget(self, *, all_but: Contestant | None = None) -> None:
        """Drop all states, or those of all contestants but one."""
        for name, (contestant, copies) in list(self._made.items()):
            if contestant is not all_but:
                for copy in copies:
                    self._server.drop(copy)
                del self._made[name]


@dataclass(frozen=True)
class Runner:
    """Runs cases; `timeout` in seconds for each run."""

    server: Server
    states: States
    expected: Expected
    runs: int
    timeout: float

    def measure(self, case: Case, contestant: Contestant) -> Result:
        """Return the figures of a contestant."""
        dataset = case.dataset
        result = Result(
            *(case.measure, dataset.name, dataset.shape.name, dataset.answers, case.variant),
            contestant.name,
            load=round(os.getloadavg()[0], 2),
        )
        self.expected.prepare(dataset, case.window.end)
        try:
            with contestant.kept_up(partial(self.states.restore, case, contestant)) as service:
                for _ in range(1 if case.once else self.runs):
                    self._run(case, contestant, service, result)
                    if not result.seconds or result.seconds[-1] > TOO_LONG_TO_REPEAT:
                        break
        except FailedError as error:
            print(error, file=sys.stderr, flush=True)
            result.failed = True
            result.seconds.clear()
        print(result.line(), flush=True)
        return result

    def _run(self, case: Case, contestant: Contestant, service: int | None, result: Result) -> None:
        self.states.restore(case, contestant)
        for statement in case.prepare:
            self.server.run(statement)
        arrive(self.server, case.window.end)
        result.touched = touched_rows(self.server, case.window.start, case.window.end)
        command = contestant.command(case.window, into_empty=case.into_empty)

        self._settle()
        ran = run(command, self.server.pid, self.timeout, service)
        result.peak_bytes.append(ran.peak_bytes)
        result.server_peak_bytes.append(ran.server_peak_bytes)
        if ran.service_peak_bytes is not None:
            result.service_peak_bytes.append(ran.service_peak_bytes)
        if ran.seconds is None:
            result.stopped_after = self.timeout
            return
        counters = self.server.counters()
        result.seconds.append(round(ran.seconds, 3))
        result.database_ms.append(round(counters.active_ms, 1))
        result.fetched = counters.fetched
        result.written = written_facts(counters, contestant)
        if phases := contestant.phases():
            result.phases.append(dict(phases))
        if case.again and contestant.runs_again:
            self._settle()
            again = run(command, self.server.pid, self.timeout)
            if again.seconds is not None:
                counters = self.server.counters()
                result.again_seconds.append(round(again.seconds, 3))
                result.again_database_ms.append(round(counters.active_ms, 1))
                result.again_written = written_facts(counters, contestant)
        wrong = self.expected.wrong_rows(case.dataset, case.window.end, contestant.facts())
        result.wrong_rows.append(wrong)

    def _settle(self) -> None:
        self.server.settle()
        self.server.reset_counters()


def written_facts(counters: Counters, contestant: Contestant) -> dict[str, int]:
    """Return the rows inserted, updated and deleted in the contestant's facts, by table."""
    facts: Mapping[str, tuple[str, str]] = contestant.facts()
    names = {".".join(table): fact for fact, table in facts.items()}
    return {names[table]: written for table, written in counters.written.items() if table in names}


def touched_rows(server: Server, start: datetime, end: datetime) -> int:
    """Return the answers and submissions of the students' tests with a row in the window."""
    return int(
        server.scalar(
            """
            WITH touched AS MATERIALIZED (
                SELECT student_id, test_id FROM answers WHERE "timestamp" >= %s AND "timestamp" < %s
                UNION
                SELECT student_id, test_id FROM submissions
                WHERE submit_time >= %s AND submit_time < %s
            )
            SELECT (SELECT count(*) FROM touched JOIN answers USING (student_id, test_id))
                + (SELECT count(*) FROM touched JOIN submissions USING (student_id, test_id))
            """,
            *(start, end, start, end),
        )
    )
