"""The steps of a generated sequence in which a process of its own is killed or stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import Engine, text

from mcq_analytics.model.windows import HOUR, Window, format_hour
from mcq_analytics_tests.agreement_looks import Looks
from mcq_analytics_tests.agreement_model import FAILED, HOURS, NAMES, Run, Step
from mcq_analytics_tests.servers import CHECKOUT, wait_until

DIED, NOT_IN_DAGSTER = "the process", "completes the record"
"""Words in the errors of runs whose process died, before or after it had stored the facts."""
HOLD = (
    "CREATE FUNCTION held() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
    "PERFORM pg_advisory_xact_lock(77); RETURN NEW; END $$"
)
HOLD_RECORDS = (
    "CREATE TRIGGER held BEFORE INSERT ON event_logs FOR EACH ROW WHEN ({}) EXECUTE FUNCTION held()"
)
OF_A_FACT = "NEW.dagster_event_type = 'ASSET_MATERIALIZATION' AND NEW.asset_key = '[\"{}\"]'"
OF_A_CHECK = "NEW.dagster_event_type = 'ASSET_CHECK_EVALUATION'"
HELD = (
    "FROM pg_locks WHERE locktype = 'advisory' AND objid = 77 AND NOT granted "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


class InProcesses(Looks):
    """The steps in processes, and what they and the others share."""

    records: Engine
    words: set[str]

    def window(self, step: Step) -> Window:
        start = self.first + step.first * HOUR
        return Window(start, min(start + step.hours * HOUR, self.first + HOURS * HOUR))

    def failed(self, run: Run, word: str) -> None:
        """Note that a run failed, with an error that contains a word."""
        self.model.fails(run)
        self.words.add(word)

    @contextmanager
    def in_a_process(
        self, step: Step, runs: Callable[[], set[str]]
    ) -> Iterator[tuple[subprocess.Popen[bytes], Run]]:
        """Run a window in a process of its own, until `runs` has its run; kill it at the end."""
        window = self.window(step)
        bounds = ["--start", format_hour(window.start), "--end", format_hour(window.end)]
        before = runs()
        process = subprocess.Popen(
            [sys.executable, "-m", "mcq_analytics", "run", *bounds],
            env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        try:
            wait_until(lambda: runs() - before != set())
            run = self.model.begin(window)
            [run.run_id] = runs() - before
            yield process, run
        finally:
            process.kill()
            process.wait()

    @contextmanager
    def before_it_stores(self, step: Step) -> Iterator[tuple[subprocess.Popen[bytes], Run]]:
        """Run a window in a process that cannot store the facts yet."""
        with self.database.engine().connect() as holder:
            for name in NAMES:
                holder.execute(text(f"LOCK TABLE analytics.{name} IN SHARE MODE"))
            with self.in_a_process(step, self.running) as (process, run):
                self.look(step.first_look)
                yield process, run
                if process.poll() is None:
                    holder.rollback()
                    process.wait()

    def running(self) -> set[str]:
        """Return the runs whose attempts are recorded as running, dead ones too."""
        return self.runs_of("SELECT run_id FROM analytics.running_attempt")

    def stored(self) -> set[str]:
        """Return the runs that have stored the facts."""
        return self.runs_of("SELECT run_id FROM analytics.etl_metadata WHERE status = 'success'")

    def runs_of(self, query: str) -> set[str]:
        with self.database.engine().connect() as connection:
            return {*connection.execute(text(query)).scalars()}

    def dies(self, step: Step) -> None:
        with self.before_it_stores(step) as (process, run):
            process.kill()
            process.wait()
        self.failed(run, DIED)

    def is_stopped(self, step: Step) -> None:
        with self.before_it_stores(step) as (process, run):
            process.send_signal(signal.SIGINT)
        self.model.is_cancelled(run)

    def dies_after_its_commit(self, step: Step) -> None:
        """Kill a process that has stored all facts, while Dagster knows only some of them.

        If it knows all of them the hours are done, though no check has judged them.
        """
        records = [*map(OF_A_FACT.format, NAMES), OF_A_CHECK][step.known]
        with self.records.connect() as holder, self.records.connect() as watcher:

            def waiting() -> list[int]:
                return [*watcher.execute(text(f"SELECT pid {HELD}")).scalars()]

            for statement in (HOLD, HOLD_RECORDS.format(records)):
                watcher.execute(text(statement))
            holder.execute(text("SELECT pg_advisory_lock(77)"))
            with self.in_a_process(step, self.stored) as (process, run):
                wait_until(lambda: waiting() != [])
                self.model.commits(run, NAMES[: step.known])
                self.look(step.first_look)
                process.kill()
                process.wait()
            # The server would still store the record, which in truth was never sent.
            for server_process in waiting():
                watcher.execute(text(f"SELECT pg_terminate_backend({server_process}, 10000)"))
            holder.execute(text("SELECT pg_advisory_unlock(77)"))
            watcher.execute(text("DROP FUNCTION held CASCADE"))
        if step.known < len(NAMES):
            self.failed(run, NOT_IN_DAGSTER)
        else:
            run.state = FAILED
