"""The folder of local files, `MCQ_HOME`: made, checked, and taken by one UI at a time."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mcq_analytics.errors import McqError

SERVER_BYTES = 64 * 2**20
"""Less would not hold the next segments of the embedded server's log, and it would end."""


def ready_home(home: Path, least_free: int = 2**20) -> Path:
    """Return the folder, which is there, can be written to, and has so many bytes of room.

    Raises:
        McqError: it is not, and why.

    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        # Out of version control, wherever it was put.
        marker = home / ".gitignore"
        if not marker.exists():
            marker.write_text("*\n")
        elif not os.access(home, os.W_OK):
            raise PermissionError(f"no right to write into {home}")
        free = shutil.disk_usage(home).free
    except OSError as error:
        raise McqError(
            f"local files go to {home}, which cannot be written to "
            f"({error.strerror or error}): set MCQ_HOME to a folder that can"
        ) from error
    if free < least_free:
        raise McqError(
            f"local files go to {home}, whose disk is full ({free // 2**20} MB are free, at least "
            f"{least_free // 2**20} are needed): free some, or set MCQ_HOME to another folder"
        )
    return home


@contextmanager
def taken_by_ui(home: Path, address: str) -> Iterator[None]:
    """Hold the folder for one UI; the lock goes with its process.

    Raises:
        McqError: another UI has it, or the folder cannot be written to.

    """
    with (ready_home(home) / "ui.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise McqError(
                f"a UI of {home} runs already ({lock.read().strip()}): use or end that one, or "
                "give this one another folder by MCQ_HOME"
            ) from None
        lock.truncate(0)
        lock.write(f"{address}, process {os.getpid()}\n")
        lock.flush()
        yield
