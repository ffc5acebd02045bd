"""dbt with microbatch models of an hour, as in `dbt_project`."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from benchmarks.contestants.contestant import Contestant, Window
from benchmarks.datasets import START, script
from benchmarks.expected import COLUMNS, KEYS
from benchmarks.processes import Command
from benchmarks.server import DATABASE

_PROJECT = Path(__file__).parent / "dbt_project"


class Dbt(Contestant):
    """One batch per hour and model, merged by the unique key."""

    name = "dbt"
    title = "dbt microbatch"

    def install(self) -> Mapping[str, str]:
        """Install it, and return its versions."""
        self._bin = self._environment("requirements-dbt.txt")
        shutil.copytree(_PROJECT, self._project, dirs_exist_ok=True)
        return {"dbt-core": "1.11.16", "dbt-postgres": "1.11.0"}

    def schema(self) -> str:
        """Return the schema of its facts."""
        return "dbt"

    def prepare_empty(self, window: Window) -> None:
        """Parse the project: dbt keeps the result for the next run."""
        self._do(self._command("parse"))

    def fill(self, window: Window) -> None:
        """Let dbt make the tables with an hour, and fill them as the floor does.

        By itself it takes a quarter of an hour for this.
        """
        first = Window(window.start, window.start + timedelta(hours=1))
        self._do(self.command(first))
        statements = [script("recompute.sql")]
        for fact, key in KEYS.items():
            columns = ", ".join((*key, *COLUMNS[fact]))
            statements += [
                f"TRUNCATE dbt.{fact}",
                f"INSERT INTO dbt.{fact} ({columns}) SELECT {columns} FROM plain.{fact}",
                f"TRUNCATE plain.{fact}",
            ]
        self.work.server.run("; ".join(statements))

    def command(self, window: Window, *, into_empty: bool = False) -> Command:
        """Return the command that computes a window."""
        return self._command(
            "run",
            *("--event-time-start", window.start.strftime("%Y-%m-%dT%H:%M:%S")),
            *("--event-time-end", window.end.strftime("%Y-%m-%dT%H:%M:%S")),
        )

    @property
    def _project(self) -> Path:
        return self.work.folder / "dbt_project"

    def _command(self, *arguments: str) -> Command:
        return Command(
            (str(self._bin / "dbt"), "--quiet", *arguments),
            {
                "BENCH_BEGIN": START.strftime("%Y-%m-%d"),
                "BENCH_HOST": self.work.server.host,
                "BENCH_DATABASE": DATABASE,
            },
            self._project,
        )
