"""The Dagster UI with its daemon, as `mcq-analytics demo` opens it: on loopback."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import click

from mcq_analytics.definitions.launch import ensure_dagster_home
from mcq_analytics.errors import McqError
from mcq_analytics.settings import load_settings


def serve(host: str, port: int) -> None:
    """Run `dagster dev` in the foreground until it is interrupted.

    Raises:
        McqError: the port is taken, or the UI ended by itself.

    """
    ensure_dagster_home(load_settings())
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            raise McqError(
                f"port {port} is taken: end what listens there, or run dagster dev --port"
            ) from None
    click.echo(f"the Dagster UI is at http://{host}:{port} (Ctrl-C ends it)")
    # A shell's job in the background ignores interrupts, by which the UI ends its own processes.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    process = subprocess.Popen(
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
    try:
        code = process.wait()
    except KeyboardInterrupt:
        # From a terminal the UI got the same signal; it ends its own processes.
        process.terminate()
        process.wait()
        return
    if code:
        raise McqError(f"the Dagster UI ended with exit code {code}")


def _target() -> list[str]:
    """Name what Dagster loads: the workspace of a checkout, else the installed package."""
    if Path("workspace.yaml").exists():
        return ["--workspace", "workspace.yaml"]
    return ["--module-name", "mcq_analytics.definitions"]
