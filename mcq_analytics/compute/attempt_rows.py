"""What an attempt records: a row in `running_attempt` until it ends, then one in `etl_metadata`.

How these tables are read is in `postgres.metadata`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timezone

from sqlalchemy import Connection, text

from mcq_analytics.model.facts import Fact
from mcq_analytics.model.windows import Window
from mcq_analytics.postgres.identifiers import quoted


@dataclass(frozen=True)
class AttemptRows:
    """Writes the rows of one attempt. A retry is an attempt of its own, with its own start."""

    schema: str
    fact: Fact
    window: Window
    run_id: str
    started_at: datetime = field(default_factory=lambda: datetime.now(timezone.utc))

    def announce(self, connection: Connection) -> None:
        """Insert the row in `running_attempt`: should the process die, it stays behind."""
        connection.execute(
            text(
                f"INSERT INTO {quoted(self.schema, 'running_attempt')} "
                "(pipeline_name, window_start, window_end, started_at, run_id) "
                "VALUES (:fact, :start, :end, :started_at, :run_id)"
            ),
            self._values(),
        )

    def withdraw(self, connection: Connection) -> bool:
        """Delete the row in `running_attempt` and return whether it was there."""
        deleted = connection.execute(
            text(
                f"DELETE FROM {quoted(self.schema, 'running_attempt')} "
                "WHERE pipeline_name = :fact AND run_id = :run_id AND started_at = :started_at"
            ),
            self._values(),
        )
        return deleted.rowcount > 0

    def record(
        self,
        connection: Connection,
        status: str,
        *,
        rows_read: int | None = None,
        rows_written: int | None = None,
        error: str | None = None,
    ) -> None:
        """Insert the row in `etl_metadata`."""
        connection.execute(
            text(
                f"INSERT INTO {quoted(self.schema, 'etl_metadata')} "
                "(pipeline_name, window_start, window_end, status, rows_read, rows_written, "
                "started_at, finished_at, run_id, error) VALUES (:fact, :start, :end, :status, "
                ":rows_read, :rows_written, :started_at, clock_timestamp(), :run_id, :error)"
            ),
            {
                **self._values(),
                "status": status,
                "rows_read": rows_read,
                "rows_written": rows_written,
                "error": error,
            },
        )

    def record_dead_attempt(self, connection: Connection) -> None:
        """Record as failed an attempt whose process died while it held the fact's lock.

        Its row is still in `running_attempt`. Only the holder of the lock may call this.
        """
        running = quoted(self.schema, "running_attempt")
        exists = connection.execute(text("SELECT to_regclass(:name)"), {"name": running}).scalar()
        if exists is None:
            return
        connection.execute(
            text(
                f"WITH dead AS (DELETE FROM {running} WHERE pipeline_name = :fact RETURNING *) "
                f"INSERT INTO {quoted(self.schema, 'etl_metadata')} (pipeline_name, window_start, "
                "window_end, status, started_at, finished_at, run_id, error) "
                "SELECT pipeline_name, window_start, window_end, 'failed', started_at, "
                "greatest(started_at, CAST(:ended_at AS timestamptz)), run_id, :error FROM dead"
            ),
            {
                "fact": self.fact.name,
                "error": "the process died, or lost the database",
                # It had ended before this attempt, which may be its retry, began.
                "ended_at": self.started_at,
            },
        )

    def _values(self) -> dict[str, object]:
        return {
            "fact": self.fact.name,
            "start": self.window.start,
            "end": self.window.end,
            "started_at": self.started_at,
            "run_id": self.run_id,
        }
