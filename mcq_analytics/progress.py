"""Progress of long work: a bar in a terminal, else a line every few seconds."""

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
    """Yield a function that advances the bar by some steps and shows the current position.

    The bar goes to stderr, so stdout has only the command's output.

    >>> with progress_bar("loading rows", total=2) as advance:
    ...     advance(2, "answers")
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
    printed = ""

    def advance(steps: int, where: str) -> None:
        nonlocal done, last, printed
        done += steps
        of = f" of {total:,}" if total is not None else ""
        line = f"{label}: {done:,}{of} ({where})"
        if monotonic() - last >= SECONDS_BETWEEN_LINES and line != printed:
            last, printed = monotonic(), line
            print(line, file=sys.stderr, flush=True)

    return advance
