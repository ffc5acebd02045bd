"""A program for tests: computes the facts over random windows."""

from __future__ import annotations

import logging
import random
import sys

import pytest

from mcq_analytics import initialize_spark_session_with_scaling
from mcq_analytics.model.windows import HOUR, Window, parse_hour
from mcq_analytics.postgres.database import open_database
from mcq_analytics.settings import load_settings
from mcq_analytics_tests.facts_of import run_facts
from mcq_analytics_tests.reading import WAYS, read_by


def main(name: str, begin: str, hours: int, times: int) -> None:
    """Run `times` random windows within `hours` from `begin` on, and print each."""
    logging.basicConfig(level=logging.WARNING)
    chance = random.Random(name)
    database = open_database(load_settings())
    spark = initialize_spark_session_with_scaling(load_settings().spark.cluster, 0)
    first = parse_hour(begin)
    for _ in range(times):
        start = chance.randrange(hours)
        end = chance.randint(start + 1, hours)
        window = Window(first + start * HOUR, first + end * HOUR)
        with pytest.MonkeyPatch.context() as patch:
            read_by(chance.choice(WAYS), patch)
            run_facts(database, spark, window, run_id=name)
        print(window, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
