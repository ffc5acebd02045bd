"""The embedded PostgreSQL server: its databases, its folder, its start and end."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click.testing
import psutil
import pytest
from sqlalchemy.engine import URL

from mcq_analytics.cli.app import main
from mcq_analytics.errors import McqError
from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.embedded import embedded_url
from mcq_analytics_tests.conftest import drop_database
from mcq_analytics_tests.facts_of import scalar
from mcq_analytics_tests.servers import CHECKOUT


def test_a_database_can_be_requested_by_several_threads_at_once(
    server: URL, server_home: Path
) -> None:
    with ThreadPoolExecutor(8) as threads:
        for name in ("wanted_1", "wanted_2", "wanted_3"):
            urls = list(threads.map(embedded_url, [server_home] * 8, [name] * 8))
            assert set(urls) == {server.set(database=name)}
            assert scalar(Database(urls[0], "public", "analytics"), "SELECT 1") == 1
            drop_database(urls[0])


def test_data_from_another_version_are_left_alone_and_both_versions_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    old = {**os.environ, "PGSERVER_POSTGRES_VERSION": "16", "PYTHONPATH": str(CHECKOUT)}
    kept = "CREATE TABLE kept AS SELECT 7 AS seven"
    made = subprocess.run(
        [sys.executable, "-c", OLD_SERVER, str(home), kept],
        env=old,
        check=False,
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    before = contents(home / "postgres")
    monkeypatch.setenv("MCQ_HOME", str(home))
    result = click.testing.CliRunner().invoke(main, ["init-db"])
    assert result.exit_code == 1
    [line] = result.stderr.splitlines()
    assert re.search(r"are from PostgreSQL 16, but the installed \S+ is (1[7-9]|[2-9]\d):", line)
    assert "dump them with 16, or move the folder aside" in line
    assert contents(home / "postgres") == before
    # As docs/operations.md says: the old server still runs.
    found = subprocess.run(
        [sys.executable, "-c", OLD_SERVER, str(home), "SELECT seven FROM kept"],
        env=old,
        check=True,
        capture_output=True,
        text=True,
    )
    assert found.stdout == "[(7,)]\n"


OLD_SERVER = """
import sys
from pathlib import Path
from sqlalchemy import create_engine, text
from mcq_analytics.postgres.embedded import embedded_url
with create_engine(embedded_url(Path(sys.argv[1]))).begin() as connection:
    rows = connection.execute(text(sys.argv[2]))
    print(rows.all() if rows.returns_rows else "")
"""


def contents(directory: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path): (path.read_bytes(), path.stat().st_uid)
        for path in directory.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("command", ["init-db", "status", "demo"])
def test_an_unusable_mcq_home_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MCQ_HOME", str(tmp_path / "file"))
    done = click.testing.CliRunner().invoke(main, [command])
    assert done.exit_code == 1
    [line] = done.stderr.splitlines()
    assert line == (
        f"error: local files go to {tmp_path / 'file'}, which cannot be written to (File exists): "
        "set MCQ_HOME to a writable folder"
    )


def test_a_full_disk_and_a_read_only_one_are_reported_as_such(tmp_path: Path) -> None:
    home = tmp_path / "disk"
    home.mkdir()
    mount = shutil.which("mount") or "mount"
    mounted = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=1m", "none", str(home)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no disk can be mounted here")
    try:
        with pytest.raises(McqError, match=r"whose disk is full \(\d+ MB free, at least 64"):
            embedded_url(home)
        subprocess.run([mount, "-o", "remount,ro", str(home)], check=True)
        with pytest.raises(McqError, match=r"cannot be written to .*: set MCQ_HOME to a writable"):
            embedded_url(home)
    finally:
        subprocess.run([shutil.which("umount") or "umount", str(home)], check=True)


LAST_USER = '''
import os, signal, subprocess, sys
from pathlib import Path
from mcq_analytics.postgres.embedded import embedded_url, forget_dead_users
home = Path(sys.argv[1])
embedded_url(home)
os.kill(int((home / "postgres" / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)
again = """
import sys
from pathlib import Path
from mcq_analytics.postgres.embedded import embedded_url
embedded_url(Path(sys.argv[1]))
"""
subprocess.run([sys.executable, "-c", again, sys.argv[1]], check=True)
print((home / "postgres" / "postmaster.pid").read_text().split()[0])
forget_dead_users(home)
'''


def test_a_server_restarted_by_another_process_stops_with_its_last_user(
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LAST_USER, str(tmp_path / "home")],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        check=True,
        capture_output=True,
        text=True,
    )
    server = int(done.stdout)
    ended = not psutil.pid_exists(server) or psutil.Process(server).status() == "zombie"
    assert ended, done.stderr
