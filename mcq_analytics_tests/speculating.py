"""A program for tests: computes the facts while Spark runs some tasks twice at the same time.

The first task attempt waits after its copy has committed, so Spark starts another one on the other
executor, which wins.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Mapping
from time import sleep
from typing import Any

import pytest
from pyspark import TaskContext
from pyspark.sql import DataFrame
from sqlalchemy import text

from mcq_analytics import initialize_spark_session_with_scaling
from mcq_analytics.postgres.database import open_database
from mcq_analytics.settings import load_settings
from mcq_analytics.spark.parts import INTERACTIONS
from mcq_analytics.spark.sink import copying
from mcq_analytics_tests.facts_of import run_facts, window
from mcq_analytics_tests.reading import read_by


def main(times: int) -> None:
    """Compute the facts `times` times, and print how many staged rows were doubled."""
    database = open_database(load_settings())
    spark = initialize_spark_session_with_scaling(load_settings().spark.cluster, 0)

    def copy_and_dawdle(
        frame: DataFrame, url: str, schema: str, tables: Mapping[str, str]
    ) -> list[int]:
        slow = random.randrange(4)

        def dawdle(batches: Iterator[Any]) -> Iterator[Any]:
            yield from batches
            context = TaskContext.get()
            assert context is not None
            if context.attemptNumber() == 0 and context.partitionId() == slow:
                sleep(20)

        copied = copying(frame.repartition(4), url, schema, tables)
        tasks = [row[0] for row in copied.mapInArrow(dawdle, copied.schema).collect()]
        with database.engine().connect() as connection:
            doubled = connection.execute(
                text(
                    f'SELECT count(*) FROM {schema}."{tables[INTERACTIONS]}" '
                    "WHERE task_attempt_id <> ALL(:t)"
                ),
                {"t": tasks},
            ).scalar_one()
        assert doubled > 0, "no task ran twice"
        print("doubled in staging:", doubled, flush=True)
        return tasks

    with pytest.MonkeyPatch.context() as patch:
        read_by("ranges", patch)
        patch.setattr("mcq_analytics.compute.attempt.copy_to_staging", copy_and_dawdle)
        for _ in range(times):
            with database.engine().begin() as connection:
                connection.execute(text("UPDATE answers SET submitted_option = 'B'"))
            run_facts(database, spark, window("2024-01-01T00", "2024-01-03T00"))


if __name__ == "__main__":
    main(int(sys.argv[1]))
