"""How long it takes to read which hours are done, after years of hourly attempts.

Usage: python benchmarks/known_hours.py [--attempts N]

Works on a database of its own in the embedded server. Nothing here is part of the tests: times
depend on the machine.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from time import perf_counter

from sqlalchemy import text

from mcq_analytics.model.facts import FACTS, FACTS_BY_NAME
from mcq_analytics.postgres.database import open_database
from mcq_analytics.postgres.hours import hours_of_facts
from mcq_analytics.settings import load_settings

HISTORY = """
    INSERT INTO analytics.etl_metadata
        (pipeline_name, window_start, window_end, status, started_at, finished_at)
    SELECT fact, timestamptz '2023-01-01Z' + n * interval '1 h',
        timestamptz '2023-01-01Z' + (n + 1) * interval '1 h',
        CASE WHEN n % 1000 = 7 THEN 'failed' ELSE 'success' END, now(), now()
    FROM unnest(CAST(:facts AS text[])) AS fact, generate_series(0, :attempts - 1) AS n
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--attempts", type=int, default=26_000, help="of each fact, an hour each")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["MCQ_HOME"] = home
        subprocess.run(
            [sys.executable, "-m", "mcq_analytics", "init-db", "--base-tables"], check=True
        )
        settings = load_settings("dev")
        engine = open_database(settings).engine()
        with engine.begin() as connection:
            connection.execute(
                text(HISTORY),
                {"facts": [fact.name for fact in FACTS], "attempts": options.attempts},
            )
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("ANALYZE analytics.etl_metadata"))
        for _ in range(3):
            begin = perf_counter()
            found = hours_of_facts(engine, settings, FACTS_BY_NAME)
            ranges = sum(len(hours.ranges) for hours in found.values())
            print(f"{ranges} ranges of {len(found)} facts in {perf_counter() - begin:.3f} s")


if __name__ == "__main__":
    main()
