"""Writing a DataFrame to a staging table: the tasks send their rows by binary COPY, in parallel.

`compute.merge` upserts the staged rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pyspark.sql import DataFrame

if TYPE_CHECKING:
    import pyarrow as pa

TASK = "task_attempt_id"
"""Column of a staging table: the Spark task attempt that wrote the row. Rows of task attempts that
Spark discarded (failed and retried, or speculative copies) stay in the table and do not count."""


def copy_to_staging(frame: DataFrame, url: str, schema: str, table: str) -> list[int]:
    """Copy the rows of `frame` into the staging table and return the task attempts that count.

    A task commits its rows with the id of its task attempt. One that fails after that, or that
    loses to a speculative copy, leaves rows in the table whose id is not returned.
    """
    return [row[TASK] for row in copying(frame, url, schema, table).collect()]


def copying(frame: DataFrame, url: str, schema: str, table: str) -> DataFrame:
    """Return a DataFrame that copies `frame` when computed, with a row per task: its attempt id."""

    def copy(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa  # noqa: PLC0415  (executed in Spark's Python workers)
        from pyspark import TaskContext  # noqa: PLC0415

        from mcq_analytics.postgres.task_errors import telling_the_driver  # noqa: PLC0415
        from mcq_analytics.spark.task_connections import connect_task  # noqa: PLC0415

        context = TaskContext.get()
        assert context is not None
        task_attempt = context.taskAttemptId()
        filled = (_with_task(batch, task_attempt) for batch in batches if batch.num_rows)
        first = next(filled, None)
        if first is not None:

            def stream() -> Iterator[pa.RecordBatch]:
                yield first
                yield from filled

            with (
                telling_the_driver(url),
                connect_task(url) as connection,
                connection.cursor() as cursor,
            ):
                cursor.adbc_ingest(
                    table,
                    pa.RecordBatchReader.from_batches(first.schema, stream()),
                    mode="append",
                    db_schema_name=schema,
                )
                connection.commit()
        yield pa.RecordBatch.from_pydict({TASK: pa.array([task_attempt], pa.int64())})

    return frame.mapInArrow(copy, f"{TASK} bigint")


def _with_task(batch: pa.RecordBatch, task_attempt: int) -> pa.RecordBatch:
    import pyarrow as pa  # noqa: PLC0415

    numbers = pa.array([task_attempt] * batch.num_rows, pa.int64())
    return batch.append_column(TASK, numbers)
