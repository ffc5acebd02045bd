"""Reading from a replica: a streaming standby of the database, which must have caught up.

A position in the primary's log is noted while the facts' lock is held. The replica's snapshot is
taken once it has replayed the log up to there: its state is then at least as new as that which any
earlier attempt has read, on the primary or on a replica.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from time import monotonic, sleep

from sqlalchemy import Connection, text

from mcq_analytics.errors import McqError

_SECONDS_BETWEEN_LOOKS = 0.2

# The position is that of the next entry in the log, which some servers put after a page's header:
# the transaction that asks makes an entry, so that the replica comes to that position and beyond.
_PRIMARY = """
    SELECT CAST(pg_current_wal_insert_lsn() AS text) AS position, pg_current_xact_id(),
        (SELECT system_identifier FROM pg_control_system()) AS cluster,
        (SELECT oid FROM pg_database WHERE datname = current_database()) AS database,
        pg_postmaster_start_time() AS started_at
"""
_REPLICA = """
    SELECT pg_is_in_recovery() AS is_replica,
        (SELECT system_identifier FROM pg_control_system()) AS cluster,
        (SELECT oid FROM pg_database WHERE datname = current_database()) AS database,
        pg_postmaster_start_time() AS started_at
"""
_BEHIND = """
    SELECT CAST(greatest(CAST(:position AS pg_lsn) - pg_last_wal_replay_lsn(), 0) AS bigint)
"""


class ReplicaError(McqError):
    """A replica is none of the database, or is too far behind it."""


@dataclass(frozen=True)
class PrimaryState:
    """A position in the log of a primary, and what tells its replicas from other servers."""

    position: str
    cluster: int
    database: int
    started_at: datetime


def primary_state(connection: Connection) -> PrimaryState:
    """Return the state of the server of a connection, whose transaction the caller commits.

    Every transaction that has committed before is visible to who has replayed the log up to it.
    """
    row = connection.execute(text(_PRIMARY)).one()
    return PrimaryState(row.position, row.cluster, row.database, row.started_at)


def wait_for_replica(connection: Connection, primary: PrimaryState, seconds: int) -> None:
    """Wait until the server of a connection has replayed what the primary had written.

    The primary itself will do: it is what some names of replicas lead to while there is none.

    A replica that is behind may still have an older database of the same name: which one it has is
    asked when it has caught up. If it drops that one meanwhile, it ends the session.

    Raises:
        ReplicaError: it is no replica of the primary, or it is still behind after `seconds`.
        sqlalchemy.exc.DBAPIError: the session was lost.

    """
    row = connection.execute(text(_REPLICA)).one()
    if row.cluster == primary.cluster and row.is_replica:
        _wait(connection, primary, seconds)
    if (row.cluster, row.database) != (primary.cluster, primary.database):
        raise ReplicaError(
            "the server that is to be read from has another database than the one that is written "
            "to: name a streaming replica of it, and the same database there"
        )
    if not row.is_replica and row.started_at != primary.started_at:
        raise ReplicaError(
            "the server that is to be read from is no replica (any more): it takes writes of its "
            "own. Name a streaming replica of the database that is written to"
        )


def _wait(connection: Connection, primary: PrimaryState, seconds: int) -> None:
    give_up = monotonic() + seconds
    while behind := _bytes_behind(connection, primary):
        if monotonic() > give_up:
            raise ReplicaError(
                f"the replica is {behind:,} bytes of log behind after {seconds} s: see whether it "
                "replays, wait longer (MCQ_REPLICA_TIMEOUT), or read from the primary"
            )
        sleep(_SECONDS_BETWEEN_LOOKS)


def _bytes_behind(connection: Connection, primary: PrimaryState) -> int:
    behind: int | None = connection.execute(
        text(_BEHIND), {"position": primary.position}
    ).scalar_one()
    # It has not replayed anything since it was started.
    return 1 if behind is None else behind
