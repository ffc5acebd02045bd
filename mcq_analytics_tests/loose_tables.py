"""Base tables with any column types, without keys or indexes, and a check that all is exact."""

from __future__ import annotations

import random
import string

from mcq_analytics.compute.fingerprints import stale_hours
from mcq_analytics.model.facts import FACTS
from mcq_analytics.model.windows import Window
from mcq_analytics.postgres.base_snapshot import snapshot_connection
from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.inspection import inspect_base_tables
from mcq_analytics.postgres.schema import key_types, migrate
from mcq_analytics.quality.audits import Audits
from mcq_analytics.quality.corrections import Corrections
from mcq_analytics_tests.facts_of import execute, window, wrong_rows

NINE = window("2024-01-01T09", "2024-01-01T10")
DAY = window("2024-01-01T00", "2024-01-02T00")


def create_base_tables(
    database: Database, *, ids: str = "text", option: str = "text", time: str = "timestamptz"
) -> None:
    """Create base tables without keys or indexes, and the fact schema."""
    execute(
        database,
        f"CREATE TABLE answers (answer_id {ids}, student_id {ids}, question_id {ids}, "
        f'test_id {ids}, session_id {ids}, submitted_option {option}, "timestamp" {time})',
        f"CREATE TABLE questions (question_id {ids}, correct_option {option})",
        f"CREATE TABLE sessions (session_id {ids}, expiry_time {time})",
        f"CREATE TABLE submissions (student_id {ids}, test_id {ids}, submit_time {time}, "
        "completion_status text)",
    )
    with database.engine().begin() as connection:
        migrate(connection, "analytics", key_types(inspect_base_tables(connection, "public")))


def require_settled(database: Database, over: Window = DAY) -> None:
    """Assert that facts equal a full recompute; checks, sensor and `rescore` find nothing."""
    assert wrong_rows(database) == []
    with snapshot_connection(database.engine(), "public") as (connection, base):
        for fact in FACTS:
            found = Audits(fact, base, "analytics", over).recomputed(connection)
            assert (found.wrong, found.awaiting) == ((), ())
        assert stale_hours(connection, base, "analytics", over) == {}
        corrections = Corrections(base, "analytics")
        assert corrections.wrong_rows_after(connection, None, 10_000).hours == set()
        hours = [hour.start for hour in over.chunks(1)]
        assert corrections.moves(connection, hours).rows == 0


def noise(length: int) -> str:
    """Return random characters, which compression cannot shorten."""
    return "".join(random.Random(length).choices(string.ascii_letters + string.digits, k=length))
