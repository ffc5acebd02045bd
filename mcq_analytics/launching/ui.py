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
    try:
        while process.poll() is None:
            started |= _descendants(process)
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


def _descendants(process: psutil.Process) -> set[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return set(process.children(recursive=True))
    return set()


def _end(processes: set[psutil.Process]) -> None:
    """End the remaining processes, such as the code server and its runs: politely, then by force.

    The embedded PostgreSQL is spared: other processes may use it, and it stops with the last one.
    """
    _, alive = psutil.wait_procs(processes, timeout=SECONDS_BETWEEN_LOOKS)
    left = [process for process in alive if not _is_server(process)]
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, left = psutil.wait_procs(left, timeout=SECONDS_TO_END)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _is_server(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.name() in ("postgres", "pg_ctl")
    return False


def _target() -> list[str]:
    """Return the options that tell Dagster what to load: a checkout's workspace, or the package."""
    if Path("workspace.yaml").exists():
        return ["--workspace", "workspace.yaml"]
    return ["--module-name", "mcq_analytics.definitions"]
