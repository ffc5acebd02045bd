"""Progress of long work: a bar in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

SECONDS_BETWEEN_LINES = 5.0

Advance = Callable[[int, str], None]


@contextmanager
def progress_bar(label: str, total: int | None = None) -> Iterator[Advance]:
    """Yield a function that moves the bar by some steps and says where the work is.

    On stderr, so that a command's output stays its own.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain(label, total)
        return
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[where]}"),
        console=console,
        transient=True,
    ) as progress:
        task = progress.add_task(label, total=total, where="")

        def advance(steps: int, where: str) -> None:
            progress.update(task, advance=steps, where=where)

        yield advance


def _plain(label: str, total: int | None) -> Advance:
    done = 0
    last = monotonic()
    said = ""

    def advance(steps: int, where: str) -> None:
        nonlocal done, last, said
        done += steps
        of = f" of {total:,}" if total is not None else ""
        line = f"{label}: {done:,}{of} ({where})"
        if monotonic() - last >= SECONDS_BETWEEN_LINES and line != said:
            last, said = monotonic(), line
            print(line, file=sys.stderr, flush=True)

    return advance
