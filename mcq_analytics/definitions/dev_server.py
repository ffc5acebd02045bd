"""Starts the Spark server of `dagster dev`, beside its daemon; it ends with `dagster dev`."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys

import psutil

from mcq_analytics.settings import Settings
from mcq_analytics.settings.home import ready_home
from mcq_analytics.spark.endpoints import local_endpoint, uses_local_server

LOG = "spark-server.log"

_started: list[subprocess.Popen[bytes]] = []


def start_beside_dagster_dev(settings: Settings) -> None:
    """Start a Spark server if this is the code server of `dagster dev`, and none runs.

    Runs compute in a process of their own until it is up.
    """
    if "DAGSTER_IS_DEV_CLI" not in os.environ or multiprocessing.parent_process() is not None:
        return
    if not uses_local_server(settings.spark) or local_endpoint(settings.home) is not None:
        return
    command = [sys.executable, "-m", "mcq_analytics", "spark-server", "--follow", str(_dev())]
    with (ready_home(settings.home) / LOG).open("ab") as log:
        _started.append(
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C in the terminal is for `dagster dev`.
                start_new_session=True,
            )
        )


def _dev() -> int:
    """Return the id of the process `dagster dev`, from which this one descends."""
    for process in psutil.Process().parents():
        if "dev" in process.cmdline():
            return process.pid
    return os.getppid()
