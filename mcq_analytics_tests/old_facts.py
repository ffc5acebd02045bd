"""Facts as the version before migration 0005 stored them, by fact, with their hours."""

from __future__ import annotations

from sqlalchemy import Connection, text

from mcq_analytics.compute.fingerprints import fingerprints, store_fingerprints
from mcq_analytics.model.windows import Window
from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.inspection import inspect_base_tables
from mcq_analytics.postgres.schema import key_types, migrate, upgrade
from mcq_analytics_tests.recompute import KEYS, columns_of, recompute

OLD = "0004"
BEFORE = "2024-01-01 12:00Z"
"""When the old version computed its rows."""

# The hours that the old version kept per fact, for sessions that never expire.
_HOURS = {
    "question_interaction_fact": "SELECT date_trunc('hour', \"timestamp\", 'UTC'), student_id, "
    "test_id, question_id FROM answers",
    "test_summary_fact": "SELECT date_trunc('hour', \"timestamp\", 'UTC'), student_id, test_id "
    "FROM answers",
    "test_funnel_fact": "SELECT date_trunc('hour', submit_time, 'UTC'), test_id FROM submissions "
    "UNION SELECT date_trunc('hour', \"timestamp\", 'UTC'), test_id FROM answers "
    "JOIN submissions USING (student_id, test_id)",
}


def store_old_facts(database: Database, over: Window) -> None:
    """Replace the fact schema by an old one with the facts of all base rows, as runs over a window.

    Base rows must lie in the window, and sessions never expire.
    """
    with database.engine().begin() as connection:
        base = inspect_base_tables(connection, "public")
        connection.exec_driver_sql("DROP SCHEMA analytics CASCADE")
        upgrade(connection, "analytics", key_types(base), OLD)
        recompute(connection)
        for fact in KEYS:
            columns = ", ".join(columns_of(connection, f"analytics.{fact}"))
            connection.execute(
                text(
                    f"INSERT INTO analytics.{fact} ({columns}, updated_at) "
                    f"SELECT {columns}, '{BEFORE}' FROM expected_{fact}"
                )
            )
            connection.execute(
                text(f"INSERT INTO analytics.{fact}_hour SELECT DISTINCT * FROM ({_HOURS[fact]}) h")
            )
            connection.execute(
                text(
                    "INSERT INTO analytics.etl_metadata (pipeline_name, window_start, window_end, "
                    "status, started_at, finished_at, run_id) "
                    "VALUES (:fact, :start, :end, 'success', :end, :end, 'old')"
                ),
                {"fact": fact, "start": over.start, "end": over.end},
            )
        _store_old_fingerprints(connection, over)


def _store_old_fingerprints(connection: Connection, over: Window) -> None:
    """Store a set per fact: that of the funnel knew no answer keys."""
    base = inspect_base_tables(connection, "public")
    connection.exec_driver_sql("CREATE SCHEMA today")
    migrate(connection, "today", key_types(base))
    store_fingerprints(connection, "today", fingerprints(connection, base, over))
    for fact, columns in {
        "question_interaction_fact": "answers, NULL",
        "test_summary_fact": "answers, NULL",
        "test_funnel_fact": "'other ' || answers, submissions",
    }.items():
        connection.execute(
            text(
                "INSERT INTO analytics.hour_fingerprint "
                f"SELECT '{fact}', hour, {columns} FROM today.hour_fingerprint"
            )
        )
    connection.exec_driver_sql("DROP SCHEMA today CASCADE")
