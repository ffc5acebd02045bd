"""Makes an archive of the Java classes that a run loads, so that Spark starts faster.

Usage: python -m mcq_analytics.spark.class_archive

Run it once per Python environment; `make setup` does. Without an archive, or with one from another
Java or Spark, sessions start as usual, only slower. (Java calls this class-data sharing.)
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
from pyspark.sql import SparkSession

from mcq_analytics.errors import McqError
from mcq_analytics.model.base_tables import BASE_COLUMNS
from mcq_analytics.settings.spark import cluster_settings
from mcq_analytics.settings.variables import read_variables
from mcq_analytics.spark.java_process import end_session
from mcq_analytics.spark.scaling import CLASS_ARCHIVE
from mcq_analytics.spark.session import spark_session
from mcq_analytics.spark.warm_up import generated
from mcq_analytics.transforms.student_tests import student_tests


def make_class_archive() -> None:
    """Write `CLASS_ARCHIVE` from a session that computes each fact from one row.

    It needs the process's only Spark session. If Java makes no archive, there is none afterwards.
    """
    CLASS_ARCHIVE.parent.mkdir(parents=True, exist_ok=True)
    CLASS_ARCHIVE.unlink(missing_ok=True)
    with TemporaryDirectory(dir=CLASS_ARCHIVE.parent) as directory:
        made = Path(directory) / CLASS_ARCHIVE.name
        with _session(Path(directory), f"-Xlog:disable -XX:ArchiveClassesAtExit={made}") as spark:
            compute_each_fact(spark)
        if made.exists():
            made.replace(CLASS_ARCHIVE)


def compute_each_fact(spark: SparkSession) -> None:
    """Compute the facts from one row per base table, in the steps of a small and a large run."""

    def copied(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        yield from batches

    first = pa.array([0], pa.int64())
    tables = {name: pa.Table.from_batches([generated(name, first)]) for name in BASE_COLUMNS}
    small = {name: spark.createDataFrame(rows).coalesce(1) for name, rows in tables.items()}
    assert student_tests(**small).toArrow().num_rows == 1
    large = {name: spark.createDataFrame(rows).persist() for name, rows in tables.items()}
    frame = student_tests(**large)
    assert frame.mapInArrow(copied, frame.schema).count() == 1


@contextmanager
def _session(home: Path, java_options: str) -> Iterator[SparkSession]:
    """Yield a session whose Java has these options; afterwards wait until that Java has ended."""
    os.environ["SPARK_SUBMIT_OPTS"] = java_options
    spark = spark_session(cluster_settings("local", read_variables()), home, 0)
    yield spark
    end_session()


if __name__ == "__main__":
    try:
        make_class_archive()
    except McqError as error:
        sys.exit(f"error: {error}")
