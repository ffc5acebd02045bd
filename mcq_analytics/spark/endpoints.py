"""Where a Spark Connect server listens: one that the settings name, or one under `MCQ_HOME`."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mcq_analytics.settings.spark import SparkSettings

FILE = "spark-server.json"


@dataclass(frozen=True)
class Endpoint:
    """The address of a server, and the token that it asks for."""

    host: str
    port: int
    token: str | None = field(default=None, repr=False)
    use_tls: bool = False

    def __str__(self) -> str:
        return f"sc://{self.host}:{self.port}"


def endpoint_of(settings: SparkSettings, home: Path) -> Endpoint | None:
    """Return the server on which a cluster computes; None if runs bring a Spark of their own.

    A master `sc://host:port` is one. So is the server under `home`, for the cluster `local`.
    """
    if settings.connect is not None:
        host, port, use_tls = settings.connect
        return Endpoint(host, port, settings.token, use_tls)
    return local_endpoint(home) if uses_local_server(settings) else None


def uses_local_server(settings: SparkSettings) -> bool:
    """Return whether runs compute on a server under `MCQ_HOME`, if there is one."""
    is_here = settings.master is None or settings.master.startswith("local")
    return settings.may_use_server and settings.cluster == "local" and is_here


def local_endpoint(home: Path) -> Endpoint | None:
    """Return the server under `home`, or None if it has none or its process is gone."""
    try:
        found = json.loads((home / FILE).read_text())
        process = found.pop("process")
        endpoint = Endpoint(**found)
        os.kill(process, 0)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return endpoint


def record_endpoint(home: Path, endpoint: Endpoint) -> None:
    """Let the processes of this user find the server of this process."""
    partial = home / f"{FILE}.{os.getpid()}"
    partial.touch(0o600)
    partial.write_text(json.dumps({**asdict(endpoint), "process": os.getpid()}))
    partial.replace(home / FILE)


def forget_endpoint(home: Path) -> None:
    """Remove the record of the server of this process."""
    (home / FILE).unlink(missing_ok=True)
