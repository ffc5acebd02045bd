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
from typing import IO

import psutil

SECONDS_BETWEEN_SAMPLES = 0.25
SHARE_OF_SAMPLING = 0.03
"""At most this share of the time is spent on sampling a process tree: to ask for the pages of a
server with large shared buffers takes a processor some time."""


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
    """How a command ran: seconds (None: it was stopped), peak bytes of it and of others."""

    seconds: float | None
    peak_bytes: int
    server_peak_bytes: int
    service_peak_bytes: int | None
    output: str


class _Sampler(threading.Thread):
    """Samples a process tree until it is stopped."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self._pid = pid
        self._stopped = threading.Event()

    def run(self) -> None:
        while True:
            begin = time.perf_counter()
            self.peak = max(self.peak, tree_bytes(self._pid))
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


def start(command: Command, output: IO[str]) -> subprocess.Popen[bytes]:
    """Start a command whose output goes to a file."""
    return subprocess.Popen(
        command.arguments,
        cwd=command.folder,
        env={**os.environ, **command.environment},
        stdout=output,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
    )


def run(command: Command, server_pid: int, timeout: float, service_pid: int | None = None) -> Ran:
    """Run a command to its end, or stop it and all below it after `timeout` seconds.

    `service_pid` is what stays up between the contestant's runs, if anything does.

    Raises:
        FailedError: it exited with an error.

    """
    with tempfile.TemporaryFile("w+") as output:
        begin = time.perf_counter()
        process = start(command, output)
        services = () if service_pid is None else (service_pid,)
        # One each: a large server would make the samples of a small process rare.
        samplers = [_Sampler(pid) for pid in (process.pid, server_pid, *services)]
        for sampler in samplers:
            sampler.start()
        seconds: float | None = None
        try:
            process.wait(timeout)
            seconds = time.perf_counter() - begin
        except subprocess.TimeoutExpired:
            pass
        finally:
            for sampler in samplers:
                sampler.stop()
            stop_tree(process)
        output.seek(0)
        text = output.read()
    if seconds is not None and process.returncode != 0:
        raise FailedError(f"{' '.join(command.arguments)} failed:\n{text[-3000:]}")
    own, of_server, *of_service = (sampler.peak for sampler in samplers)
    return Ran(seconds, own, of_server, of_service[0] if of_service else None, text)


def stop_tree(process: subprocess.Popen[bytes]) -> None:
    """End a process, and all that is still below it."""
    if process.poll() is not None:
        return
    below = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(20)
    process.kill()
    process.wait()
    for child in below:
        with suppress(psutil.NoSuchProcess):
            child.kill()
