"""The project itself, as a whole process per command, its Dagster records on the same server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import ClassVar

from benchmarks.contestants.contestant import CHECKOUT, Contestant, Window, python_module
from benchmarks.datasets import EMPTY, HOUR, MEASURED, START
from benchmarks.processes import Command, FailedError, run, start, stop_tree
from benchmarks.server import DATABASE
from mcq_analytics.spark.endpoints import local_endpoint

RECORDS = "records"
"""The database of Dagster's records."""

HOUR_BEFORE = Window(MEASURED - HOUR, MEASURED)
"""The hour that warms a Spark server: its rows are there in every case."""
RUNS_TO_WARM = 10
SECONDS_TO_START = 120.0

_JAVA = """
import time
from mcq_analytics import initialize_spark_session_with_scaling
import pyspark.sql
begin = time.perf_counter()
initialize_spark_session_with_scaling("local", 0)
print("seconds", time.perf_counter() - begin)
"""


class Ours(Contestant):
    """`python -m mcq_analytics run`, with a Java of its own that starts cold."""

    name = "mcq"
    title = "this project"
    uses_server: ClassVar[bool] = False
    """Whether it computes on a Spark server, if one is up."""

    def install(self) -> Mapping[str, str]:
        """Install it, and return its versions."""
        self._home.mkdir(exist_ok=True)
        from importlib.metadata import version  # noqa: PLC0415

        return {name: version(name) for name in ("dagster", "pyspark")}

    def schema(self) -> str:
        """Return the schema of its facts."""
        return "analytics"

    def databases(self) -> tuple[str, ...]:
        """Return the database of Dagster's records."""
        return (RECORDS,)

    def make_empty(self) -> None:
        """Make the database with empty base tables, their indexes and the fact schema."""
        self.work.server.create(DATABASE)
        self._do(self._command("init-db", "--base-tables"))
        self.work.server.create(EMPTY, DATABASE)

    def prepare_empty(self, window: Window) -> None:
        """Let Dagster create the tables of its records, as on any day but the first."""
        self.work.server.create(RECORDS)
        self._do(self._command("status"))

    def fill(self, window: Window) -> None:
        """Compute the past."""
        self.prepare_empty(window)
        self._do(self.command(window))

    def command(self, window: Window, *, into_empty: bool = False) -> Command:
        """Return the command that computes a window."""
        return self._command(
            "run", "--start", window.start.isoformat(), "--end", window.end.isoformat()
        )

    def phases(self) -> Mapping[str, float]:
        """Return the seconds of the last run by phase: `seconds_*` of its materializations.

        Facts that one attempt computed report the same seconds, which count once.
        """
        server = self.work.server
        with server.connection(RECORDS) as connection, connection.cursor() as cursor:
            cursor.execute(
                "SELECT DISTINCT ON (asset_key) event FROM event_logs "
                "WHERE dagster_event_type = 'ASSET_MATERIALIZATION' ORDER BY asset_key, id DESC"
            )
            events = [json.loads(event) for (event,) in cursor.fetchall()]
        attempts = {tuple(sorted(_seconds(event).items())) for event in events}
        total: dict[str, float] = {}
        for attempt in attempts:
            for phase, seconds in attempt:
                total[phase] = round(total.get(phase, 0.0) + seconds, 3)
        return total

    def java_seconds(self, runs: int) -> float:
        """Return the seconds until a Spark session is up in a process that has imported pyspark."""
        return median(
            float(
                run(
                    self._command_of((sys.executable, "-c", _JAVA)), self.work.server.pid, 120.0
                ).output.split()[-1]
            )
            for _ in range(runs)
        )

    @property
    def _home(self) -> Path:
        return self.work.folder / "home"

    def _command(self, *arguments: str) -> Command:
        return self._command_of(python_module("mcq_analytics", *arguments))

    def _command_of(self, arguments: tuple[str, ...]) -> Command:
        return Command(
            arguments,
            {
                "MCQ_ENV": "test",
                "DB_TEST_URL": self.work.server.url(),
                "MCQ_DAGSTER_URL": self.work.server.url(RECORDS),
                "MCQ_HOME": str(self._home),
                "MCQ_PARTITION_START": START.isoformat(),
                "MCQ_SPARK_SERVER": str(self.uses_server).lower(),
                "DAGSTER_HOME": "",
                "PYTHONPATH": str(CHECKOUT),
            },
            # Not the checkout, which may have an .env and has a dagster.yaml of its own.
            self._home,
        )


class WarmOurs(Ours):
    """The same on a Spark server, which each case starts and warms before its runs."""

    name = "warm"
    title = "this project, warm Spark server"
    uses_server = True

    @contextmanager
    def kept_up(self, restore: Callable[[], None]) -> Iterator[int | None]:
        """Keep up a server that has computed an hour some times, and yield its process.

        The past is computed before, without it: the same runs warm the server in every case.
        """
        restore()
        log = self._home / "spark-server.out"
        # It would also end if this process were killed.
        serve = self._command("spark-server", "--follow", str(os.getpid()))
        with log.open("w") as output:
            process = start(serve, output)
        try:
            self._wait_for(process, log)
            for _ in range(RUNS_TO_WARM):
                self._do(self.command(HOUR_BEFORE))
            yield process.pid
        finally:
            stop_tree(process)

    def _wait_for(self, process: subprocess.Popen[bytes], log: Path) -> None:
        give_up = time.monotonic() + SECONDS_TO_START
        while local_endpoint(self._home) is None:
            if process.poll() is not None or time.monotonic() > give_up:
                raise FailedError(f"the Spark server does not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.1)
        # Without one that answers, runs would start a Java of their own.
        self._do(self._command("spark-server", "--check"))


def _seconds(event: Mapping[str, object]) -> dict[str, float]:
    found: dict[str, float] = {}
    _collect(event, found)
    return found


def _collect(part: object, found: dict[str, float]) -> None:
    if isinstance(part, dict):
        label, data = part.get("label"), part.get("entry_data")
        if isinstance(label, str) and label.startswith("seconds_") and isinstance(data, dict):
            found[label.removeprefix("seconds_")] = float(data.get("value") or 0.0)
        for value in part.values():
            _collect(value, found)
    elif isinstance(part, list):
        for value in part:
            _collect(value, found)
