"""What every contestant can do: be installed, fill its facts with the past, compute a window."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import venv
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import ClassVar

from benchmarks.expected import KEYS
from benchmarks.processes import Command, FailedError, run
from benchmarks.server import Server

CHECKOUT = Path(__file__).parents[2]
SECONDS_TO_SET_UP = 3_600.0


@dataclass(frozen=True)
class Window:
    """A half-open window of whole hours, UTC."""

    start: datetime
    end: datetime


@dataclass(frozen=True)
class Work:
    """Where contestants work: the server, a folder for this run, and one that stays."""

    server: Server
    folder: Path
    environments: Path


@contextmanager
def working(name: str) -> Iterator[Work]:
    """Yield where contestants work in this run; the server and its folder go at the end."""
    # A stopped run ends its server and the command that it measures, as after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    kept = CHECKOUT / ".bench"
    kept.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept, prefix=f"{name}-") as made:
        folder = Path(made)
        folder.chmod(0o755)
        server = Server(folder / "postgres")
        try:
            yield Work(server, folder, kept / "environments")
        finally:
            server.stop()


class Contestant(ABC):
    """A contestant. It finds and leaves its facts in the database `bench`."""

    name: ClassVar[str]
    title: ClassVar[str]
    runs_again: ClassVar[bool] = True
    """Whether it can run a window again that it has computed."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def install(self) -> Mapping[str, str]:
        """Install what it needs, and return the versions of it."""
        return {}

    def prepare_empty(self, window: Window) -> None:
        """Make its facts ready to be filled from the start of a window, none of them computed."""
        return

    @abstractmethod
    def fill(self, window: Window) -> None:
        """Fill its facts with a past window, by whatever way is fast."""

    @abstractmethod
    def command(self, window: Window, *, into_empty: bool = False) -> Command:
        """Return the command that computes a window."""

    @contextmanager
    def kept_up(self, restore: Callable[[], None]) -> Iterator[int | None]:
        """Keep up what the runs of a case share, warm, and yield its process.

        `restore` makes the database with the contestant's state before the case.
        """
        yield None

    def facts(self) -> Mapping[str, tuple[str, str]]:
        """Return the schema and table of each fact."""
        return {fact: (self.schema(), fact) for fact in KEYS}

    @abstractmethod
    def schema(self) -> str:
        """Return the schema of its facts."""

    def databases(self) -> tuple[str, ...]:
        """Return further databases that belong to its state."""
        return ()

    def phases(self) -> Mapping[str, float]:
        """Return the seconds of the last run by phase, where it reports them."""
        return {}

    def _do(self, command: Command) -> None:
        if run(command, self.work.server.pid, SECONDS_TO_SET_UP).seconds is None:
            raise FailedError(f"{' '.join(command.arguments)} takes more than an hour")

    def _environment(self, requirements: str) -> Path:
        """Return the folder of programs of a virtual environment with pinned packages."""
        folder = self.work.environments / self.name
        wanted = CHECKOUT / "benchmarks" / requirements
        installed = folder / "installed.txt"
        if not installed.exists() or installed.read_text() != wanted.read_text():
            print(f"installing {self.title}", flush=True)
            venv.create(folder, clear=True, with_pip=True)
            subprocess.run(
                [
                    *(folder / "bin" / "python", "-m", "pip", "install", "-qq"),
                    *("--disable-pip-version-check", "--requirement", wanted),
                ],
                check=True,
            )
            installed.write_text(wanted.read_text())
        return folder / "bin"


def python_module(module: str, *arguments: str) -> tuple[str, ...]:
    """Return the arguments that run a module with this Python."""
    return (sys.executable, "-m", module, *arguments)
