"""The image of `deploy/Dockerfile` without containers: a folder, mostly read-only to its user."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from mcq_analytics.spark.java import ensure_java
from mcq_analytics_tests.clusters import SHORT_LIVED_JAVA
from mcq_analytics_tests.manifests import DOCKERFILE, PROGRAMS, Service
from mcq_analytics_tests.servers import CHECKOUT, wait_until
from mcq_analytics_tests.spark_servers import COLD

WRITABLE = re.findall(r"mkdir (.+?) \\\n", DOCKERFILE)[0].split()
"""Folders of the image that its user may write to."""


class Image:
    """A folder in place of the image's, and a user who may read all of it but write to little."""

    def __init__(self, ports: dict[str, int]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mcq_image_"))
        self.logs = Path(tempfile.mkdtemp(prefix="mcq_logs_"))
        self._ports = ports
        self._user = as_another_user()
        for name in (*WRITABLE, "home"):
            (self.folder / name).mkdir()
            if self._user:
                shutil.chown(self.folder / name, "nobody")
        for name in ("dagster.yaml", "deploy/workspace.yaml"):
            text = (CHECKOUT / name).read_text()
            (self.folder / Path(name).name).write_text(self.here(text, ports))
        self._java = ensure_java(self.folder / "home")
        self.folder.chmod(0o555)
        [self._set] = re.findall(r"^ENV ((?:.*\\\n)*.*)$", DOCKERFILE, re.M)

    def remove(self) -> None:
        self.folder.chmod(0o755)
        for folder in (self.folder, self.logs):
            shutil.rmtree(folder)

    def here(self, text: str, ports: dict[str, int]) -> str:
        """Replace folders, hosts and ports of a manifest by those of this machine."""
        text = text.replace("/opt/mcq", str(self.folder))
        text = re.sub(r"\b(0\.0\.0\.0|spark-master|dagster-db)\b", "127.0.0.1", text)
        text = re.sub(r"(?<==)spark\b|(?<=//)spark(?=:\d)|^code$", "127.0.0.1", text)
        return re.sub(rf"\b({'|'.join(ports)})\b", lambda port: str(ports[port[0]]), text)

    def command(self, words: list[str], port: int | None = None) -> list[str]:
        ports = self._ports if port is None else {**self._ports, "3000": port}
        name, *arguments = (self.here(word, ports) for word in words)
        return [*self._user, str(PROGRAMS / name), *arguments]

    def environment(self, given: dict[str, str]) -> dict[str, str]:
        """Return the environment of the image and the service, adapted to this machine."""
        image = dict(re.findall(r"(\w+)=(\S+)", self._set))
        ours = {name: self.here(value, self._ports) for name, value in {**image, **given}.items()}
        return {
            **ours,
            "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
            "HOME": str(self.folder / "home"),
            "JAVA_HOME": str(self._java),
            "PYTHONPATH": str(CHECKOUT),
            # Listen on loopback only.
            "SPARK_LOCAL_IP": "127.0.0.1",
            "SPARK_DAEMON_JAVA_OPTS": SHORT_LIVED_JAVA,
            **COLD,
        }

    @contextmanager
    def started(
        self, service: Service, port: int | None = None
    ) -> Iterator[Callable[[Callable[[], bool]], None]]:
        """Run a service (a webserver on `port`); yield a function that waits until it is ready."""
        log = self.logs / f"{service.name}.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                self.command(service.command, port),
                cwd=self.folder,
                env=self.environment(service.environment),
                stdout=output,
                stderr=subprocess.STDOUT,
            )

        def wait(ready: Callable[[], bool]) -> None:
            wait_until(lambda: process.poll() is not None or ready())
            assert process.poll() is None, log.read_text()

        try:
            yield wait
            assert process.poll() is None, log.read_text()
        finally:
            family = []
            with suppress(psutil.NoSuchProcess):
                family = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
            process.wait(60)
            _, alive = psutil.wait_procs(family, timeout=30)
            for left in alive:
                left.kill()

    def run(self, service: Service, words: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(words),
            cwd=self.folder,
            env=self.environment(service.environment),
            check=False,
            capture_output=True,
            text=True,
        )


def as_another_user() -> list[str]:
    """Return the words that start a command as an unprivileged user, if the tests run as root.

    The user has a name, because Java needs one. If it cannot import dagster otherwise, for instance
    because Python is under root's home, it may read all files.
    """
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        return []
    nobody = pwd.getpwnam("nobody")
    dropped = ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"]
    may_read = [
        f"--{kind}=-all,+dac_read_search" for kind in ("inh-caps", "ambient-caps", "bounding-set")
    ]
    for options in ([], may_read):
        command = [*dropped, *options]
        # By a shell, because setpriv itself starts its command with all rights.
        probe = [*command, "sh", "-c", '"$0" -c "import dagster"', sys.executable]
        if subprocess.run(probe, check=False, capture_output=True).returncode == 0:
            return command
    return []
