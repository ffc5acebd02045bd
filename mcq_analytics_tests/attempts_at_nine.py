"""Attempts over nine o'clock in a test: their base rows, and queries on their traces."""

from __future__ import annotations

from mcq_analytics.postgres.database import Database
from mcq_analytics_tests.facts_of import execute, scalar, window

NINE = window("2024-01-01T09", "2024-01-01T10")
STAGING = "SELECT count(*) FROM pg_class WHERE relname LIKE 'stg%'"
RUNNING = "SELECT count(*) FROM analytics.running_attempt"
LAST_ATTEMPT = "SELECT (status, error)::text FROM analytics.etl_metadata ORDER BY id DESC LIMIT 1"


def add_nine(database: Database) -> None:
    """Add an answer and a submission at nine."""
    execute(
        database,
        "INSERT INTO answers VALUES (1, 7, 3, 5, 1, 'A', '2024-01-01 09:10Z')",
        "INSERT INTO submissions VALUES (7, 5, '2024-01-01 09:20Z', 'completed')",
    )


def statuses(database: Database) -> object:
    """Return the statuses of all attempts, the oldest first: each attempt has three equal rows."""
    return scalar(
        database,
        "SELECT array_agg(status ORDER BY id) FROM (SELECT min(id) AS id, min(status) AS status "
        "FROM analytics.etl_metadata GROUP BY run_id, started_at "
        "HAVING count(DISTINCT pipeline_name) = 3 AND count(DISTINCT status) = 1) a",
    )
