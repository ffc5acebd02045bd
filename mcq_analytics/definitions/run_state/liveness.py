"""Tells whether a run's process is alive, from the process table or from its lock.

On the same machine, a process is identified by boot, PID namespace, PID and start time in ticks
since the boot: host names may repeat, and clocks may jump. From elsewhere, its lock decides: an
advisory lock in Dagster's database, which the process holds and which ends with it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from time import monotonic

from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, RunsFilter
from sqlalchemy import create_engine, text
from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from mcq_analytics.definitions.run_state.run_errors import DIED
from mcq_analytics.instance.storage import records_url
from mcq_analytics.postgres.database import CONNECT_TIMEOUT_SECONDS, sqlalchemy_text
from mcq_analytics.postgres.errors import first_line
from mcq_analytics.settings import Settings

logger = logging.getLogger(__name__)

PROCESS_TAG = ".dagster/mcq_process"
"""Tag of a run: its id, PID, start time and place. Dagster's pages hide tags that begin like it."""

GONE_AFTER_SECONDS = 90.0
"""How long the lock of a run elsewhere must be free before its process is taken for dead. A live
process that lost the database takes the lock again seconds after it is back."""

_SECONDS_BETWEEN_BEATS = 10.0
_SECONDS_BETWEEN_TRIALS = 1.0

_free_since: dict[str, float] = {}


class Alive:
    """Holds the lock of a run from `start` until `stop`, or until the process ends."""

    def __init__(self, run_id: str, settings: Settings) -> None:
        self._key = run_key(run_id)
        self._settings = settings
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._hold, name="alive", daemon=True)

    def start(self) -> None:
        """Take the lock, in a thread; take it again if the connection is lost."""
        self._thread.start()

    def stop(self) -> None:
        """Release the lock."""
        self._stopped.set()
        self._thread.join(_SECONDS_BETWEEN_BEATS)

    def _hold(self) -> None:
        while not self._stopped.wait(_SECONDS_BETWEEN_TRIALS if self._is_lost() else 0):
            pass

    def _is_lost(self) -> bool:
        """Hold the lock until `stop` or until it is lost; return whether it was lost."""
        try:
            with _engine(self._settings).connect() as connection:
                connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": self._key})
                while not self._stopped.wait(_SECONDS_BETWEEN_BEATS):
                    connection.execute(text("SELECT 1"))
        except SQLAlchemyError as error:
            logger.debug("the lock of the run was lost, taking it again: %s", first_line(error))
            return True
        return False


def process_tags(run_id: str) -> dict[str, str]:
    """Return the run tags by which others can tell whether this process is alive."""
    process = os.getpid()
    return {PROCESS_TAG: f"{run_id} {process} {started_at(process) or '-'} {place() or '-'}"}


def process_of(run: DagsterRun) -> int | None:
    """Return the PID of the process of a run, or None if it is not recorded yet.

    A re-executed run has the tags of its parent until it begins.
    """
    words = run.tags.get(PROCESS_TAG, "").split()
    return int(words[1]) if words and words[0] == run.run_id else None


def end_dead_runs(instance: DagsterInstance, settings: Settings) -> None:
    """Report runs whose process is gone to Dagster as failed.

    On the machine and in the container where it ran, this is seen at once; elsewhere, once its lock
    has been free for `GONE_AFTER_SECONDS`. The next attempt cleans up the database.
    """
    begun = instance.get_runs(RunsFilter(statuses=[DagsterRunStatus.STARTED]))
    for run in _gone([run for run in begun if process_of(run) is not None], settings):
        instance.report_run_failed(run, DIED)


def _gone(runs: list[DagsterRun], settings: Settings) -> list[DagsterRun]:
    held = _held_keys(runs, settings)
    now = monotonic()
    free = {run.run_id for run in runs if run_key(run.run_id) not in held}
    for run_id in _free_since.keys() - free:
        del _free_since[run_id]
    gone = []
    for run in runs:
        if run.run_id not in free:
            continue
        since = _free_since.setdefault(run.run_id, now)
        if is_dead_here(run) or now - since >= GONE_AFTER_SECONDS:
            gone.append(run)
    return gone


def is_dead_here(run: DagsterRun) -> bool:
    """Return whether the process of a run began in this PID namespace and has ended."""
    _, process, start, where = run.tags[PROCESS_TAG].split(maxsplit=3)
    if where != place() or start == "-":
        return False
    found = started_at(int(process))
    if found is None:
        return not _exists(int(process))
    return found != start


def place() -> str | None:
    """Return an identifier of this boot and PID namespace; None on systems other than Linux."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def started_at(process: int) -> str | None:
    """Return the start time of a process, in ticks since the boot; None if it cannot be seen."""
    try:
        # The program name, in parentheses, may contain anything.
        words = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    # Fields 3 and 22 of the line; the first two were cut off with the name.
    state, started = words[0], words[19]
    return "ended" if state in "ZX" else started


def run_key(run_id: str) -> int:
    """Return the key of a run's advisory lock: a signed 64-bit number."""
    digest = hashlib.blake2b(f"mcq_analytics run {run_id}".encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "big", signed=True)


def _exists(process: int) -> bool:
    """Return whether a process exists, even if it is hidden from us."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _held_keys(runs: Iterable[DagsterRun], settings: Settings) -> set[int]:
    """Return the lock keys of those runs whose locks are held."""
    keys = [run_key(run.run_id) for run in runs]
    if not keys:
        return set()
    with _engine(settings).connect() as connection:
        return set(
            connection.execute(
                text(
                    "SELECT key FROM (SELECT (CAST(classid AS bigint) << 32) "
                    "| CAST(objid AS bigint) AS key FROM pg_locks WHERE locktype = 'advisory' "
                    "AND granted AND objsubid = 1 AND database = (SELECT oid FROM pg_database "
                    "WHERE datname = current_database())) held WHERE key = ANY(:keys)"
                ),
                {"keys": keys},
            ).scalars()
        )


def _engine(settings: Settings) -> Engine:
    return create_engine(
        sqlalchemy_text(records_url(settings)),
        poolclass=NullPool,
        isolation_level="AUTOCOMMIT",
        # Otherwise the server would keep the lock after the host is gone.
        connect_args={
            "connect_timeout": CONNECT_TIMEOUT_SECONDS,
            "application_name": "mcq_analytics alive",
            "options": "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=10 "
            "-c tcp_keepalives_count=3",
        },
    )
