"""A program for tests: computes a small and a large window, and prints Java's options.

The limit for a large load is lowered, so that a thousand rows are large.
"""

from __future__ import annotations

from pyspark.sql import SparkSession

from mcq_analytics.launching import in_process
from mcq_analytics.model.windows import Window, parse_hour
from mcq_analytics.settings import load_settings
from mcq_analytics.spark import scaling


def main() -> None:
    """Compute the two hours, a run each, and print Java's options and a Spark setting."""
    scaling.QUICK_RECORDS = 100
    vars(in_process)["HOURS_PER_RUN"] = 1
    in_process.run_window(
        load_settings(), Window(parse_hour("2024-01-01T09"), parse_hour("2024-01-01T11"))
    )
    spark = SparkSession.getActiveSession()
    assert spark is not None
    java = spark._jvm.java.lang.management.ManagementFactory.getRuntimeMXBean()  # type: ignore[union-attr]
    print(*java.getInputArguments())
    print(spark.conf.get("spark.sql.codegen.wholeStage"))


if __name__ == "__main__":
    main()
