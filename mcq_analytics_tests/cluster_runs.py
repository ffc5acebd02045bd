"""A program for tests: computes the facts on a cluster, however the base rows are read.

Usage: python -m mcq_analytics_tests.cluster_runs RECORDS [WAY...]

It changes the answers before each run, and prints the way and how many rows are wrong afterwards.
Then it waits for a line, with its session open.
"""

from __future__ import annotations

import sys

import pytest
from sqlalchemy import text

from mcq_analytics import initialize_spark_session_with_scaling
from mcq_analytics.postgres.database import open_database
from mcq_analytics.settings import load_settings
from mcq_analytics_tests.facts_of import run_facts, window, wrong_rows
from mcq_analytics_tests.reading import read_by

CHANGES = (
    "UPDATE answers SET submitted_option = 'B' WHERE answer_id % 5 = :turn",
    "DELETE FROM answers WHERE answer_id % 11 = :turn",
    "UPDATE submissions SET completion_status = 'timeout' WHERE student_id % 9 = :turn",
)


def main(records: int, ways: list[str]) -> None:
    """Compute the facts once for each way."""
    settings = load_settings()
    database = open_database(settings)
    spark = initialize_spark_session_with_scaling(settings.spark.cluster, records)
    for turn, way in enumerate(ways):
        with database.engine().begin() as connection:
            for change in CHANGES:
                connection.execute(text(change), {"turn": turn})
        with pytest.MonkeyPatch.context() as patch:
            read_by(way, patch)
            run_facts(database, spark, window("2024-01-01T00", "2024-01-03T00"))
        print(way, len(wrong_rows(database)), flush=True)
    sys.stdin.readline()
    spark.stop()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
