"""Storing a result in the staging tables: from the driver, or from Spark's tasks in parallel.

`compute.merge` upserts the staged rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from pyspark.sql import DataFrame

from mcq_analytics.postgres.task_errors import installed_version, telling_the_driver
from mcq_analytics.spark.parts import TASK, copy_parts
from mcq_analytics.spark.task_connections import connect_task

if TYPE_CHECKING:
    import pyarrow as pa

DRIVER = 0
"""Stands for a task attempt in rows that the driver has copied."""


def collect_to_staging(
    frame: DataFrame, url: str, schema: str, tables: Mapping[str, str]
) -> list[int]:
    """Copy a small result through the driver, without Python workers; return `[DRIVER]`.

    `frame` has the columns of `student_tests`, `tables` the staging tables by part.
    """
    result = frame.toArrow()
    with connect_task(url) as connection, connection.cursor() as cursor:
        for batch in result.combine_chunks().to_batches():
            copy_parts(cursor, batch, schema, tables, DRIVER)
        connection.commit()
    return [DRIVER]


def copy_to_staging(
    frame: DataFrame, url: str, schema: str, tables: Mapping[str, str]
) -> list[int]:
    """Copy a result in Spark's tasks, and return the task attempts whose rows count.

    A task commits its rows with the id of its task attempt. One that fails after that, or that
    loses to a speculative copy, leaves rows in the tables whose id is not returned.
    """
    return [row[TASK] for row in copying(frame, url, schema, tables).collect()]


def copying(frame: DataFrame, url: str, schema: str, tables: Mapping[str, str]) -> DataFrame:
    """Return a DataFrame that copies `frame` when computed, with a row per task: its attempt id."""
    version = installed_version()

    def copy(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa  # noqa: PLC0415  (executed in Spark's Python workers)
        from pyspark import TaskContext  # noqa: PLC0415

        context = TaskContext.get()
        assert context is not None
        task_attempt = context.taskAttemptId()
        filled = (batch for batch in batches if batch.num_rows)
        first = next(filled, None)
        if first is not None:
            with (
                telling_the_driver(url, version=version),
                connect_task(url) as connection,
                connection.cursor() as cursor,
            ):
                copy_parts(cursor, first, schema, tables, task_attempt)
                for batch in filled:
                    copy_parts(cursor, batch, schema, tables, task_attempt)
                connection.commit()
        yield pa.RecordBatch.from_pydict({TASK: pa.array([task_attempt], pa.int64())})

    return frame.mapInArrow(copy, f"{TASK} bigint")
