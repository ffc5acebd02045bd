"""Whether the process of a run is still there, by two witnesses: the machine, and a lock.

Where a process began is named so that no other is taken for it: by boot, namespace of processes,
number, and time of start in ticks since the boot. Names of hosts may be the same, clocks may step.
Its lock is in the database of Dagster's records, and goes with the process, wherever that was.
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
from mcq_analytics.settings import load_settings

logger = logging.getLogger(__name__)

PROCESS_TAG = ".dagster/mcq_process"
"""Of a run: its id, its process, when and where that began. Dagster's pages hide such tags."""

GONE_AFTER_SECONDS = 90.0
"""So long a lock is seen to be free before the process of a run elsewhere is taken for dead: one
that has lost the database takes the lock again within seconds after it is back."""

_SECONDS_BETWEEN_BEATS = 10.0
_SECONDS_BETWEEN_TRIALS = 1.0

_free_since: dict[str, float] = {}


class Alive:
    """Holds the lock of a run, from `start` to `stop` or the end of the process."""

    def __init__(self, run_id: str) -> None:
        self._key = run_key(run_id)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._hold, name="alive", daemon=True)

    def start(self) -> None:
        """Begin to hold it; a lock that is lost with its connection is taken again."""
        self._thread.start()

    def stop(self) -> None:
        """Give it back."""
        self._stopped.set()
        self._thread.join(_SECONDS_BETWEEN_BEATS)

    def _hold(self) -> None:
        while not self._stopped.wait(_SECONDS_BETWEEN_TRIALS if self._is_lost() else 0):
            pass

    def _is_lost(self) -> bool:
        """Hold the lock until that is to end, or it is lost."""
        try:
            with _engine().connect() as connection:
                connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": self._key})
                while not self._stopped.wait(_SECONDS_BETWEEN_BEATS):
                    connection.execute(text("SELECT 1"))
        except SQLAlchemyError as error:
            logger.debug("the lock of the run is lost, and taken again: %s", first_line(error))
            return True
        return False


def process_tags(run_id: str) -> dict[str, str]:
    """Return the tags by which others find out whether this process, a run's, is alive."""
    process = os.getpid()
    return {PROCESS_TAG: f"{run_id} {process} {started_at(process) or '-'} {place() or '-'}"}


def process_of(run: DagsterRun) -> int | None:
    """Return the number that the process of a run has where it began, if it has noted it.

    A run that is executed again has the tags of its parent until it begins.
    """
    words = run.tags.get(PROCESS_TAG, "").split()
    return int(words[1]) if words and words[0] == run.run_id else None


def end_dead_runs(instance: DagsterInstance) -> None:
    """Report runs as failed whose process is gone.

    On the machine where it ran that is seen at once; elsewhere, and from another container, once
    its lock has been free for `GONE_AFTER_SECONDS`. What such a run left in the database, the next
    attempt of its fact records and sweeps.
    """
    begun = instance.get_runs(RunsFilter(statuses=[DagsterRunStatus.STARTED]))
    for run in _gone([run for run in begun if process_of(run) is not None]):
        instance.report_run_failed(run, DIED)


def _gone(runs: list[DagsterRun]) -> list[DagsterRun]:
    held = _held_keys(runs)
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
    """Return whether the process of a run began here, where processes are seen, and has ended."""
    _, process, start, where = run.tags[PROCESS_TAG].split(maxsplit=3)
    if where != place() or start == "-":
        return False
    found = started_at(int(process))
    if found is None:
        return not _exists(int(process))
    return found != start


def place() -> str | None:
    """Return a name of the boot and the namespace of processes that this process is in.

    None where there is no such name: on other systems than Linux.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def started_at(process: int) -> str | None:
    """Return when a process that runs began, in ticks since the boot; None where it is not seen."""
    try:
        # The name of the program, in parentheses, may hold anything.
        words = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    # Fields 3 and 22 of the line, of which two went with the name.
    state, started = words[0], words[19]
    return "ended" if state in "ZX" else started


def run_key(run_id: str) -> int:
    """Return the key of a run's advisory lock: a signed 64-bit number."""
    digest = hashlib.blake2b(f"mcq_analytics run {run_id}".encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "big", signed=True)


def _exists(process: int) -> bool:
    """Return whether there is such a process, be it hidden from us."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _held_keys(runs: Iterable[DagsterRun]) -> set[int]:
    """Return the keys of those runs whose locks are held."""
    keys = [run_key(run.run_id) for run in runs]
    if not keys:
        return set()
    with _engine().connect() as connection:
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


def _engine() -> Engine:
    return create_engine(
        sqlalchemy_text(records_url(load_settings())),
        poolclass=NullPool,
        isolation_level="AUTOCOMMIT",
        # The server is not to keep the lock of a host that is gone.
        connect_args={
            "connect_timeout": CONNECT_TIMEOUT_SECONDS,
            "application_name": "mcq_analytics alive",
            "options": "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=10 "
            "-c tcp_keepalives_count=3",
        },
    )
