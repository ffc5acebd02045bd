"""The folder for local files, `MCQ_HOME`: created, checked, and locked by one UI at a time."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mcq_analytics.errors import McqError

SERVER_BYTES = 64 * 2**20
"""Free space that the embedded server needs: with less, its next WAL segments would not fit."""


def ready_home(home: Path, least_free: int = 2**20) -> Path:
    """Create the folder if it is missing and return it.

    Raises:
        McqError: it cannot be written to, or has less than `least_free` bytes of free space.

    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        # Keeps the folder out of version control.
        marker = home / ".gitignore"
        if not marker.exists():
            marker.write_text("*\n")
        elif not os.access(home, os.W_OK):
            raise PermissionError(f"no permission to write into {home}")
        free = shutil.disk_usage(home).free
    except OSError as error:
        raise McqError(
            f"local files go to {home}, which cannot be written to "
            f"({error.strerror or error}): set MCQ_HOME to a writable folder"
        ) from error
    if free < least_free:
        raise McqError(
            f"local files go to {home}, whose disk is full ({free // 2**20} MB free, at least "
            f"{least_free // 2**20} MB needed): free some space, or set MCQ_HOME to another folder"
        )
    return home


@contextmanager
def taken_by_ui(home: Path, address: str) -> Iterator[None]:
    """Lock the folder for one UI; the lock ends with the process.

    Raises:
        McqError: another UI holds it, or the folder cannot be written to.

    """
    with (ready_home(home) / "ui.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise McqError(
                f"a UI for {home} is already running ({lock.read().strip()}): use it, stop it, or "
                "set MCQ_HOME to another folder"
            ) from None
        lock.truncate(0)
        lock.write(f"{address}, process {os.getpid()}\n")
        lock.flush()
        yield
