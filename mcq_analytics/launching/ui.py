"""The Dagster UI with its daemon, as `mcq-analytics demo` opens it: on loopback."""

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
    """Run `dagster dev` in the foreground until it is interrupted, and end all that it started.

    Raises:
        McqError: the port is taken, another UI has the folder, or the UI ended by itself.

    """
    ensure_dagster_home(settings)
    address = f"http://{host}:{port}"
    with taken_by_ui(settings.home, address):
        _require_free(host, port)
        click.echo(f"the Dagster UI is at {address} (Ctrl-C ends it)")
        # A shell's job in the background ignores interrupts, by which the UI ends its processes.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler)
        code = _run_dev(host, port)
        forget_dead_users(settings.home)
    if code is not None:
        raise McqError(f"the Dagster UI ended by itself, with exit code {code}: see above")


def _require_free(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            raise McqError(
                f"port {port} is taken: end what listens there, or run dagster dev --port"
            ) from None


def _run_dev(host: str, port: int) -> int | None:
    """Return the exit code of `dagster dev`, None where it was interrupted.

    It may be 0 though a process of its own has died, and it ended the others.
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
        # Dagster recommends another command, which does not know this layout.
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
        # From a terminal the UI got the same signal; it ends its own processes.
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
    """End those that are left, each with a chance to end by itself: the code server, its runs.

    The embedded server, which one of them may have started, has users of its own.
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
    """Name what Dagster loads: the workspace of a checkout, else the installed package."""
    if Path("workspace.yaml").exists():
        return ["--workspace", "workspace.yaml"]
    return ["--module-name", "mcq_analytics.definitions"]
