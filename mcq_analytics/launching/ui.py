"""Runs the Dagster UI and daemon for `mcq-analytics demo`, on loopback."""

from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

import click
import psutil

from mcq_analytics.errors import McqError
from mcq_analytics.launching.in_process import ensure_dagster_home
from mcq_analytics.postgres.embedded import forget_dead_users
from mcq_analytics.settings import Settings
from mcq_analytics.settings.home import taken_by_ui

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_TO_END = 30
LOOKS_WITHOUT_CODE_SERVER = 3


def serve(settings: Settings, host: str, port: int) -> None:
    """Run `dagster dev` in the foreground until interrupted, then end every process it started.

    Raises:
        McqError: the port is taken, another UI uses MCQ_HOME, or the UI ended unexpectedly.

    """
    ensure_dagster_home(settings)
    address = f"http://{host}:{port}"
    with taken_by_ui(settings.home, address):
        _require_free(host, port)
        click.echo(f"the Dagster UI is at {address} (Ctrl-C stops it)")
        # A shell's background job ignores interrupts, but the UI needs them to end its processes.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler)
        code = _run_dev(host, port)
        forget_dead_users(settings.home)
    if code is not None:
        raise McqError(f"the Dagster UI ended unexpectedly, with exit code {code}: see above")


def _require_free(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            raise McqError(
                f"port {port} is taken: stop what listens there, or run dagster dev --port"
            ) from None


def _run_dev(host: str, port: int) -> int | None:
    """Run `dagster dev`; return its exit code, None if it was interrupted.

    The code may be 0 even if one of its processes died, after which it ends the others.
    """
    process = psutil.Popen(
        [
            sys.executable,
            "-m",
            "dagster",
            "dev",
            "--host",
            host,
            "--port",
            str(port),
            *_target(),
            "--log-level",
            "warning",
        ],
        # Dagster recommends a newer command, which does not support this project's layout.
        env={**os.environ, "PYTHONWARNINGS": "ignore:Function `dev_command` is superseded"},
    )
    started: set[psutil.Process] = set()
    parents = _CodeServerParents()
    try:
        while process.poll() is None:
            started = _running(started) | _descendants(process)
            for parent in parents.without_a_server(_descendants(process)):
                click.echo("the code server died: it is restarted", err=True)
                # It has nothing to clean up; `dagster dev` starts it again, with a code server.
                parent.kill()
            with suppress(psutil.TimeoutExpired):
                process.wait(SECONDS_BETWEEN_LOOKS)
        return int(process.returncode)
    except KeyboardInterrupt:
        # In a terminal the UI gets the same signal, and ends its own processes.
        started |= _descendants(process)
        process.terminate()
        process.wait()
        return None
    finally:
        _end(started)


class _CodeServerParents:
    """Dagster's processes that start a code server, and do not notice when it dies.

    They report that all is well, but no page, schedule, sensor or alert works without it.
    """

    def __init__(self) -> None:
        self._looks_without: dict[psutil.Process, int] = {}

    def without_a_server(self, processes: set[psutil.Process]) -> list[psutil.Process]:
        """Return those of the processes whose code server is gone."""
        found = []
        for parent in processes:
            if "code-server" not in _command(parent):
                continue
            if any("grpc" in _command(child) for child in _descendants(parent)):
                self._looks_without[parent] = 0
            elif parent in self._looks_without:
                self._looks_without[parent] += 1
                if self._looks_without[parent] == LOOKS_WITHOUT_CODE_SERVER:
                    found.append(parent)
        return found


def _command(process: psutil.Process) -> list[str]:
    """Return the command line of a process, empty if it has ended."""
    with suppress(psutil.NoSuchProcess):
        return list(process.cmdline())
    return []


def _descendants(process: psutil.Process) -> set[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return set(process.children(recursive=True))
    return set()


def _end(processes: set[psutil.Process]) -> None:
    """End the remaining processes, such as the code server and its runs: politely, then by force.

    The embedded PostgreSQL is spared: other processes may use it, and it stops with the last one.
    """
    _, alive = psutil.wait_procs(_running(processes), timeout=SECONDS_BETWEEN_LOOKS)
    left = [process for process in alive if not _is_server(process)]
    # A run ends its own Spark; if Spark went first, the run would fail instead of being stopped.
    for process in [process for process in left if not _is_of_spark(process)]:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, left = psutil.wait_procs(left, timeout=SECONDS_TO_END)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _running(processes: set[psutil.Process]) -> set[psutil.Process]:
    """Leave out ended processes: another process or thread may have their number now."""
    return {process for process in processes if process.is_running()}


def _is_of_spark(process: psutil.Process) -> bool:
    """Return whether a process is Spark's Java or one of its children."""
    with suppress(psutil.NoSuchProcess):
        return any(one.name() == "java" for one in (process, *process.parents()))
    return False


def _is_server(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.name() in ("postgres", "pg_ctl")
    return False


def _target() -> list[str]:
    """Return the options that tell Dagster what to load: a checkout's workspace, or the package."""
    if Path("workspace.yaml").exists():
        return ["--workspace", "workspace.yaml"]
    return ["--module-name", "mcq_analytics.definitions"]
