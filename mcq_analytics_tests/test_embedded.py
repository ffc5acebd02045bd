"""The embedded server, and the databases that are made on it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sqlalchemy.engine import URL

from mcq_analytics.storage.database import Database
from mcq_analytics.storage.embedded import embedded_url
from mcq_analytics_tests.conftest import drop_database
from mcq_analytics_tests.facts_of import scalar


def test_a_database_that_many_ask_for_at_once_is_made_for_all(
    server: URL, server_home: Path
) -> None:
    with ThreadPoolExecutor(8) as threads:
        for name in ("wanted_1", "wanted_2", "wanted_3"):
            urls = list(threads.map(embedded_url, [server_home] * 8, [name] * 8))
            assert set(urls) == {server.set(database=name)}
            assert scalar(Database(urls[0], "public", "analytics"), "SELECT 1") == 1
            drop_database(urls[0])
