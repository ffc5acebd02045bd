"""Runs a command as a whole process, from start to exit, and samples the memory of its tree."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

SECONDS_BETWEEN_SAMPLES = 0.25
SHARE_OF_SAMPLING = 0.03
"""At most this share of the time is spent on sampling: to ask for the pages of a server with large
shared buffers takes a processor some time."""


class FailedError(Exception):
    """A command failed; the message has the end of its output."""


@dataclass(frozen=True)
class Command:
    """A command of a contestant: its arguments, what its environment has more, its folder."""

    arguments: Sequence[str]
    environment: Mapping[str, str]
    folder: Path


@dataclass(frozen=True)
class Ran:
    """How a command ran: seconds (None: it was stopped), peak bytes of it and of the server."""

    seconds: float | None
    peak_bytes: int
    server_peak_bytes: int
    output: str


class _Sampler(threading.Thread):
    """Samples two process trees until it is stopped."""

    def __init__(self, pid: int, server_pid: int) -> None:
        super().__init__(daemon=True)
        self.peak = self.server_peak = 0
        self._pid, self._server_pid = pid, server_pid
        self._stopped = threading.Event()

    def run(self) -> None:
        while True:
            begin = time.perf_counter()
            self.peak = max(self.peak, tree_bytes(self._pid))
            self.server_peak = max(self.server_peak, tree_bytes(self._server_pid))
            took = time.perf_counter() - begin
            if self._stopped.wait(max(SECONDS_BETWEEN_SAMPLES, took / SHARE_OF_SAMPLING)):
                return

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def tree_bytes(pid: int) -> int:
    """Return the memory of a process and all below it; pages that they share are counted once.

    Where the system does not divide shared pages (PSS), it is the sum of what each has for itself.
    """
    total = 0
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                memory = process.memory_full_info()
                total += getattr(memory, "pss", memory.uss)
    return total


def run(command: Command, server_pid: int, timeout: float) -> Ran:
    """Run a command to its end, or stop it and all below it after `timeout` seconds.

    Raises:
        FailedError: it exited with an error.

    """
    with tempfile.TemporaryFile("w+") as output:
        begin = time.perf_counter()
        process = subprocess.Popen(
            command.arguments,
            cwd=command.folder,
            env={**os.environ, **command.environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
        sampler = _Sampler(process.pid, server_pid)
        sampler.start()
        seconds: float | None = None
        try:
            process.wait(timeout)
            seconds = time.perf_counter() - begin
        except subprocess.TimeoutExpired:
            pass
        finally:
            sampler.stop()
            if process.returncode is None:
                _stop_tree(process)
        output.seek(0)
        text = output.read()
    if seconds is not None and process.returncode != 0:
        raise FailedError(f"{' '.join(command.arguments)} failed:\n{text[-3000:]}")
    return Ran(seconds, sampler.peak, sampler.server_peak, text)


def _stop_tree(process: subprocess.Popen[bytes]) -> None:
    below = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(20)
    process.kill()
    process.wait()
    for child in below:
        with suppress(psutil.NoSuchProcess):
            child.kill()
