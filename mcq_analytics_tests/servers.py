"""PostgreSQL servers for the tests: the wheel's, and an installed one of another version."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.engine import URL

from mcq_analytics.storage.database import Database
from mcq_analytics.storage.embedded import embedded_url

# A test's database need not outlive a crash of the machine.
FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


@contextmanager
def embedded_server(directory: Path) -> Iterator[URL]:
    """Run the server from the wheel; it ends with the tests' process."""
    url = embedded_url(directory, "mcq")
    engine = Database(url, "public", "analytics").engine()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for name, value in FAST.items():
            connection.execute(text(f"ALTER SYSTEM SET {name} = {value}"))
        connection.execute(text("SELECT pg_reload_conf()"))
    yield url


def installed_server() -> Path | None:
    """Return the programs of an installed PostgreSQL 14 or newer, or None."""
    candidates = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((path for path in candidates if int(path.parent.name) >= 14), None)


@contextmanager
def own_server(programs: Path, *options: str) -> Iterator[URL]:
    """Run an installed PostgreSQL on a socket in a directory of its own, with a password."""
    directory = Path(tempfile.mkdtemp(prefix="mcq_pg_"))
    user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    if os.geteuid() == 0:
        shutil.chown(directory, user)
    data = directory / "data"
    secret = directory / "password"
    secret.write_text("s3cret-p4ss\n")
    secret.chmod(0o644)

    def run(program: str, *arguments: str) -> None:
        subprocess.run(
            [str(programs / program), *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=directory,
            **({"user": user} if os.geteuid() == 0 else {}),  # type: ignore[call-overload]
        )

    run(
        "initdb",
        "-D",
        str(data),
        "-U",
        "owner",
        "-A",
        "scram-sha-256",
        "--pwfile",
        str(secret),
        "-E",
        "UTF8",
        "--locale",
        "C.UTF-8",
    )
    settings = {**FAST, "listen_addresses": "", "unix_socket_directories": str(directory)}
    flags = " ".join(f"-c {name}={value or chr(39) * 2}" for name, value in settings.items())
    run(
        "pg_ctl",
        "-w",
        "-D",
        str(data),
        "-l",
        str(directory / "log"),
        "-o",
        " ".join([flags, *options]),
        "start",
    )
    try:
        yield URL.create(
            "postgresql+psycopg2",
            username="owner",
            password="s3cret-p4ss",
            database="postgres",
            query={"host": str(directory)},
        )
    finally:
        run("pg_ctl", "-D", str(data), "-m", "immediate", "stop")
        shutil.rmtree(directory)
