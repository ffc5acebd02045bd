"""What an attempt records, per fact: a row in `running_attempt`, and at its end in `etl_metadata`.

How these tables are read is in `postgres.metadata`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from time import monotonic

from sqlalchemy import Connection, text

from mcq_analytics.model.facts import FACTS_BY_NAME
from mcq_analytics.model.windows import Window
from mcq_analytics.postgres.identifiers import quoted


@dataclass(frozen=True)
class AttemptRows:
    """Writes the rows of one attempt. A retry is an attempt of its own, with its own start."""

    schema: str
    window: Window
    run_id: str
    started_at: datetime = field(default_factory=lambda: datetime.now(timezone.utc))

    def announce(self, connection: Connection) -> None:
        """Insert the rows in `running_attempt`: should the process die, they stay behind."""
        connection.execute(
            text(
                f"INSERT INTO {quoted(self.schema, 'running_attempt')} "
                "(pipeline_name, window_start, window_end, started_at, run_id) "
                "VALUES (:fact, :start, :end, :started_at, :run_id)"
            ),
            [{**self._values(), "fact": fact} for fact in FACTS_BY_NAME],
        )

    def withdraw(self, connection: Connection) -> set[str]:
        """Delete the rows in `running_attempt` and return the facts whose row was there."""
        deleted = connection.execute(
            text(
                f"DELETE FROM {quoted(self.schema, 'running_attempt')} "
                "WHERE run_id = :run_id AND started_at = :started_at RETURNING pipeline_name"
            ),
            self._values(),
        )
        return set(deleted.scalars())

    def record(
        self,
        connection: Connection,
        status: str,
        facts: Iterable[str] = FACTS_BY_NAME,
        *,
        rows_read: int | None = None,
        rows_written: Mapping[str, int] | None = None,
        error: str | None = None,
        seconds_ago: float = 0,
    ) -> None:
        """Insert the rows in `etl_metadata`; `rows_written` is by fact."""
        connection.execute(
            text(
                f"INSERT INTO {quoted(self.schema, 'etl_metadata')} "
                "(pipeline_name, window_start, window_end, status, rows_read, rows_written, "
                "started_at, finished_at, run_id, error) VALUES (:fact, :start, :end, :status, "
                ":rows_read, :rows_written, :started_at, "
                "clock_timestamp() - make_interval(secs => :seconds_ago), :run_id, :error)"
            ),
            [
                {
                    **self._values(),
                    "fact": fact,
                    "status": status,
                    "rows_read": rows_read,
                    "rows_written": (rows_written or {}).get(fact),
                    "error": error,
                    "seconds_ago": seconds_ago,
                }
                for fact in facts
            ],
        )

    def record_dead_attempt(self, connection: Connection) -> None:
        """Record as failed an attempt whose process died while it held the lock.

        Its rows are still in `running_attempt`. Only the holder of the lock may call this.
        """
        running = quoted(self.schema, "running_attempt")
        exists = connection.execute(text("SELECT to_regclass(:name)"), {"name": running}).scalar()
        if exists is None:
            return
        connection.execute(
            text(
                f"WITH dead AS (DELETE FROM {running} RETURNING *) "
                f"INSERT INTO {quoted(self.schema, 'etl_metadata')} (pipeline_name, window_start, "
                "window_end, status, started_at, finished_at, run_id, error) "
                "SELECT pipeline_name, window_start, window_end, 'failed', started_at, "
                "greatest(started_at, CAST(:ended_at AS timestamptz)), run_id, :error FROM dead"
            ),
            {
                "error": "the process died, or lost the database",
                # It had ended before this attempt, which may be its retry, began.
                "ended_at": self.started_at,
            },
        )

    def _values(self) -> dict[str, object]:
        return {
            "start": self.window.start,
            "end": self.window.end,
            "started_at": self.started_at,
            "run_id": self.run_id,
        }


@dataclass(frozen=True)
class EndedAttempt:
    """An attempt that failed or was cancelled, to be recorded once the database lets us."""

    rows: AttemptRows
    was_announced: bool
    status: str
    error: str
    ended: float = field(default_factory=monotonic)

    def record(self, connection: Connection) -> None:
        """Withdraw its rows in `running_attempt`, and record it unless that is done already."""
        facts = self.rows.withdraw(connection)
        # An announced attempt that has lost its rows is recorded: it committed, or another run
        # took it for dead.
        if facts or not self.was_announced:
            self.rows.record(
                connection,
                self.status,
                facts or FACTS_BY_NAME,
                error=self.error,
                seconds_ago=monotonic() - self.ended,
            )
