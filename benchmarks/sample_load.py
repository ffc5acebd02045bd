"""The time to load a sample into empty base tables, with indexes created last or kept throughout.

Usage: python benchmarks/sample_load.py [--students N] [--hours N] [--times N]

It uses an embedded server of its own and tries the two ways in turns. Times depend on the machine.
"""

from __future__ import annotations

import argparse
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from time import perf_counter

from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.embedded import embedded_url
from mcq_analytics.postgres.inspection import create_missing_base_tables, inspect_base_tables
from mcq_analytics.sample.base_copy import LOAD_ORDER, arrow_schema, copy_base_tables
from mcq_analytics.sample.generator import SampleTables, generate_sample


def copy_seconds(database: Database, sample: SampleTables, *, indexes_last: bool) -> float:
    """Return the seconds to copy a sample into new base tables."""
    with database.engine().begin() as connection:
        connection.exec_driver_sql("DROP TABLE IF EXISTS answers, questions, sessions, submissions")
        create_missing_base_tables(connection, "public")
        base = inspect_base_tables(connection, "public")
    readers = {
        name: getattr(sample, name).cast(arrow_schema(base, name)).to_reader(100_000)
        for name in LOAD_ORDER
    }
    begin = perf_counter()
    copy_base_tables(database, readers, indexes_last=indexes_last)
    return perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--students", type=int, default=1300)
    parser.add_argument("--hours", type=int, default=1440)
    parser.add_argument("--times", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        database = Database(embedded_url(Path(home)), "public", "analytics")
        begin = perf_counter()
        sample = generate_sample(
            students=options.students,
            start=datetime(2024, 1, 1, tzinfo=timezone.utc),
            hours=options.hours,
            seed=1,
        )
        print(f"{sample.answers.num_rows:,} answers generated in {perf_counter() - begin:.1f} s")
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(options.times):
            for indexes_last, taken in seconds.items():
                taken.append(copy_seconds(database, sample, indexes_last=indexes_last))
                way = "created last" if indexes_last else "kept"
                print(f"copied with indexes {way} in {taken[-1]:.1f} s", flush=True)
        print(f"ratio of the medians: {median(seconds[False]) / median(seconds[True]):.2f}")


if __name__ == "__main__":
    main()
