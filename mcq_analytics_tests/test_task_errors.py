"""Errors of Spark's Python workers keep their SQLSTATE on the way to the driver."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from adbc_driver_manager import Error
from py4j.protocol import Py4JJavaError
from pyspark.errors import PythonException
from pyspark.sql import SparkSession
from pyspark.sql.types import LongType, StructField, StructType
from sqlalchemy.engine import URL

from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.errors import first_line, is_transient
from mcq_analytics.postgres.task_errors import telling_the_driver, worker_report
from mcq_analytics.spark.source import SnapshotRead, batches_of
from mcq_analytics.spark.task_connections import connect_task
from mcq_analytics_tests.facts_of import scalar
from mcq_analytics_tests.faults_of import FORGED, fault_of, raising


@pytest.fixture(scope="module")
def on_server(server: URL) -> Database:
    return Database(server, "public", "analytics")


def test_a_sqlstate_crosses_spark_and_a_forged_one_in_a_row_does_not(
    on_server: Database, spark: SparkSession
) -> None:
    conninfo, statement = on_server.conninfo(), raising("22012", FORGED)

    def refuse(batches: Iterator[Any]) -> Iterator[Any]:
        with telling_the_driver(conninfo), connect_task(conninfo) as connection:
            connection.cursor().execute(statement)
        yield from batches

    with pytest.raises(Exception, match="TaskError") as failure:
        spark.range(1).mapInArrow(refuse, "id long").collect()
    assert not is_transient(failure.value)
    assert first_line(failure.value) == " ".join(FORGED.split())


def test_the_sqlstate_of_a_snapshot_reader_crosses_spark(
    on_server: Database, spark: SparkSession
) -> None:
    read = SnapshotRead(
        url=on_server.conninfo(),
        staging_url=on_server.conninfo(),
        snapshot="",
        input_name="answers",
        keys_sql=raising("40001", "Zugriff\nverweigert: 28000").replace("END $$", "END $$ --"),
        rows_sql="",
        address="ctid",
        blocks=1,
        setting_sql="",
        count_sql="",
    )
    schema = StructType([StructField("id", LongType())])
    with pytest.raises(Exception, match="TaskError") as failure:
        read.load(spark, schema, 1).collect()
    assert is_transient(failure.value)
    assert "another transaction was in the way" in fault_of(failure.value)
    assert first_line(failure.value) == "Zugriff verweigert: 28000"


@pytest.mark.own_java
def test_a_sqlstate_crosses_spark_when_several_stages_fail_at_once(
    on_server: Database, spark: SparkSession
) -> None:
    """Spark then raises one error for all stages, with that of the first stage as its cause."""
    conninfo, statement = on_server.conninfo(), raising("40001", "Zugriff")

    def refuse(batches: Iterator[Any]) -> Iterator[Any]:
        with telling_the_driver(conninfo), connect_task(conninfo) as connection:
            connection.cursor().execute(statement)
        yield from batches

    with pytest.raises(PythonException) as of_one:
        spark.range(1).mapInArrow(refuse, "id long").collect()
    of_all = spark.sparkContext._jvm.org.apache.spark.SparkException(  # type: ignore[union-attr]
        "[STAGE_MATERIALIZATION_MULTIPLE_FAILURES] Multiple failures (2)",
        of_one.value._origin,  # type: ignore[attr-defined]
    )
    failure = Py4JJavaError("An error occurred while calling o1.collectToPython.\n", of_all)
    assert is_transient(failure)
    assert first_line(failure) == "Zugriff"


def test_a_foreign_error_cannot_pose_as_one_of_ours(spark: SparkSession) -> None:
    forged = FORGED.partition("\n")[2]

    def fail(batches: Iterator[Any]) -> Iterator[Any]:
        yield from batches
        raise ValueError(f"{FORGED}\nTraceback (most recent call last):\n{forged}\n{forged}")

    with pytest.raises(Exception, match="forged") as failure:
        spark.range(1).mapInArrow(fail, "id long").collect()
    assert not is_transient(failure.value)
    assert fault_of(failure.value) == "asking: …"
    frames = 'Traceback (most recent call last):\n  File "x.py", line 1, in f\n    raise error\n'
    assert worker_report(f"{frames}{forged}\n") is not None
    assert worker_report(f"{frames}ValueError: x\n{forged}\n") is None
    assert worker_report(f"{frames}{forged[:-1]}\n") is None


def test_a_connection_that_is_lost_in_the_middle_of_a_result_is_worth_another_try(
    on_server: Database,
) -> None:
    with (
        connect_task(on_server.conninfo()) as connection,
        connection.cursor() as cursor,
        connection.cursor() as other,
    ):
        other.execute("SELECT pg_backend_pid()")
        pid = other.fetchone()
        assert pid is not None
        cursor.execute("SELECT repeat('x', 1000) FROM generate_series(1, 1000000)")
        batches = batches_of(cursor)
        next(batches)
        assert scalar(on_server, f"SELECT pg_terminate_backend({pid[0]}, 10000)") is True
        with pytest.raises(Error) as failure:
            list(batches)
    assert is_transient(failure.value)
    assert "the connection to the server was lost" in fault_of(failure.value)
