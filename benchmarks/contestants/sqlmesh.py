"""SQLMesh with models that are incremental by unique key, as in `sqlmesh_project`."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from benchmarks.contestants.contestant import Contestant, Window
from benchmarks.processes import Command
from benchmarks.server import DATABASE

_PROJECT = Path(__file__).parent / "sqlmesh_project"
_FORMAT = "%Y-%m-%d %H:%M:%S"


class SqlMesh(Contestant):
    """All missing hours in one pass. Its state is in the measured database."""

    name = "sqlmesh"
    title = "SQLMesh"
    # Restating an hour of a model by unique key restates all of its past.
    runs_again = False

    def install(self) -> Mapping[str, str]:
        """Install it, and return its versions."""
        self._bin = self._environment("requirements-sqlmesh.txt")
        shutil.copytree(_PROJECT, self._project, dirs_exist_ok=True)
        return {"sqlmesh": "0.236.4"}

    def schema(self) -> str:
        """Return the schema of its facts."""
        return "facts"

    def fill(self, window: Window) -> None:
        """Compute the past."""
        self._do(self.command(window, into_empty=True))

    def command(self, window: Window, *, into_empty: bool = False) -> Command:
        """Return the command that computes a window."""
        if into_empty:
            return self._command(
                *("plan", "--auto-apply", "--no-prompts", "--skip-tests"),
                *("--execution-time", window.end.strftime(_FORMAT)),
            )
        last = window.end - timedelta(seconds=1)
        return self._command("run", "--end", last.strftime(_FORMAT))

    @property
    def _project(self) -> Path:
        return self.work.folder / "sqlmesh_project"

    def _command(self, *arguments: str) -> Command:
        return Command(
            (str(self._bin / "sqlmesh"), *arguments),
            {"BENCH_HOST": self.work.server.host, "BENCH_DATABASE": DATABASE},
            self._project,
        )
