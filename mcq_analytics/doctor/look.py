"""What a task of Spark sees around it. Python workers import this module, so it imports little."""

from __future__ import annotations

import os
import platform
import shutil
from datetime import datetime, timezone
from pathlib import Path

import pyarrow as pa
import pyspark

from mcq_analytics.spark.task_connections import connect_task

LOOK = "host string, executor bigint, spark string, ahead double, free bigint"
"""Machine, Python daemon of the executor, version of Spark, how many seconds the machine's clock is
ahead of PostgreSQL's, and free bytes in the executor's folder."""


def look_around(conninfo: str) -> pa.RecordBatch:
    """Return one row with the columns of `LOOK`.

    Raises:
        adbc_driver_manager.Error: PostgreSQL cannot be reached from here, or refuses.

    """
    with connect_task(conninfo) as connection, connection.cursor() as cursor:
        before = datetime.now(timezone.utc)
        cursor.execute("SELECT clock_timestamp()")
        row = cursor.fetchone()
    assert row is not None
    here = before + (datetime.now(timezone.utc) - before) / 2
    seen = {
        "host": platform.node(),
        # An executor starts one daemon, and that all its workers.
        "executor": os.getppid(),
        "spark": pyspark.__version__,
        "ahead": (here - row[0]).total_seconds(),
        "free": shutil.disk_usage(Path.cwd()).free,
    }
    return pa.RecordBatch.from_pylist([seen])
