"""A program for tests: computes a window and prints all that Spark's own UI shows of it.

The limit for small windows is lowered, so that Spark's tasks read the base tables.
"""

from __future__ import annotations

import os
import sys
import urllib.request

from pyspark.sql import SparkSession

from mcq_analytics.launching import in_process
from mcq_analytics.model.windows import Window, parse_hour
from mcq_analytics.settings import load_settings

PAGES = ("environment/", "jobs/", "stages/", "storage/", "executors/", "SQL/")
RECORDS = ("environment", "jobs", "stages?details=true", "sql?details=true&length=1000")


def main(start: str, end: str) -> None:
    """Print the pages of the session's UI, and its REST API."""
    os.environ["MCQ_DRIVER_ROWS"] = "0"
    in_process.run_window(load_settings(), Window(parse_hour(start), parse_hour(end)))
    spark = SparkSession.builder.getOrCreate()
    context = spark.sparkContext
    records = f"api/v1/applications/{context.applicationId}"
    queries = [f"SQL/execution/?id={number}" for number in range(20)]
    for page in [*PAGES, *queries, *(f"{records}/{record}" for record in RECORDS)]:
        with urllib.request.urlopen(f"{context.uiWebUrl}/{page}", timeout=60) as answer:  # noqa: S310
            print(page, answer.read().decode())


if __name__ == "__main__":
    main(*sys.argv[1:])
