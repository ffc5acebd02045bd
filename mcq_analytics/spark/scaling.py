"""Spark's settings for a load: those of a session, and those with which Java starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from mcq_analytics.settings.spark import CONNECTIONS, CORES, SparkSettings
from mcq_analytics.spark.sizing import PARTITION_BYTES, size_of

MILLION = 1_000_000
INTERPRETED_RECORDS = 30_000
"""Up to this many records, compiling Spark's expressions takes longer than interpreting them."""
QUICK_RECORDS = 100_000
"""Up to this many records, optimising a job takes longer than running it."""

CLASS_ARCHIVE = Path(sys.prefix) / "share" / "mcq_analytics" / "spark.jsa"
"""The archive that `mcq_analytics.spark.class_archive` makes in a Python environment."""

_LOG_SETTINGS = Path(__file__).parent / "log4j2.properties"

# Sessions and answer keys of some million rows are sent to all tasks. For few records, each input
# is one partition, and the joins run in one stage without a shuffle or broadcast.
_JOINS = {
    "spark.sql.autoBroadcastJoinThreshold": str(64 * 2**20),
    "spark.sql.maxSinglePartitionBytes": str(128 * 2**20),
    "spark.sql.defaultSizeInBytes": str(2**63 - 1),
}
_QUICK_JOINS = {
    "spark.sql.autoBroadcastJoinThreshold": "-1",
    "spark.sql.maxSinglePartitionBytes": str(2**63 - 1),
    "spark.sql.defaultSizeInBytes": "1",
}
_QUICK_JAVA = "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=128m -XX:+UseSerialGC"
_EXECUTORS = (
    "spark.dynamicAllocation.minExecutors",
    "spark.dynamicAllocation.initialExecutors",
    "spark.dynamicAllocation.maxExecutors",
)
_OF_APPLICATION = (
    "spark.sql.codegen.cache.maxEntries",
    "spark.sql.ui.retainedExecutions",
)
# Settings that change with each load; the others are fixed when a session starts.
_PER_QUERY = (
    "spark.sql.shuffle.partitions",
    "spark.sql.codegen.wholeStage",
    "spark.sql.codegen.factoryMode",
    *_JOINS,
)


def scaling_config(
    record_count: int, cores: int = CORES, connections: int = CONNECTIONS
) -> dict[str, str]:
    """Return Spark's settings for a load: dynamic allocation and adaptive query execution.

    Executors have up to `cores` cores, and all of them at most `connections` to PostgreSQL.

    Raises:
        ValueError: `record_count` is negative, or another number is not positive.

    """
    size = size_of(record_count, cores, connections)
    return {
        "spark.dynamicAllocation.enabled": "true",
        "spark.dynamicAllocation.shuffleTracking.enabled": "true",
        # An idle executor may go although it holds what no query needs any more: Java finds that
        # out only when it collects its garbage.
        "spark.dynamicAllocation.shuffleTracking.timeout": "60s",
        "spark.dynamicAllocation.cachedExecutorIdleTimeout": "600s",
        **dict(zip(_EXECUTORS, map(str, (size.minimum, size.initial, size.maximum)), strict=True)),
        "spark.executor.cores": str(size.cores),
        "spark.sql.adaptive.enabled": "true",
        "spark.sql.adaptive.coalescePartitions.enabled": "true",
        "spark.sql.adaptive.skewJoin.enabled": "true",
        "spark.sql.adaptive.advisoryPartitionSizeInBytes": str(PARTITION_BYTES),
        # If one side of a join is empty, this rule abandons the other side's tasks while they still
        # read: they would outlive the query, and each takes a Python worker down.
        "spark.sql.adaptive.optimizer.excludedRules": (
            "org.apache.spark.sql.execution.adaptive.AQEPropagateEmptyRelation"
        ),
        "spark.sql.shuffle.partitions": str(size.partitions),
        **(_QUICK_JOINS if record_count <= QUICK_RECORDS else _JOINS),
    }


def session_config(settings: SparkSettings, record_count: int) -> dict[str, str]:
    """Return all of Spark's settings for a new session; those in the cluster's conf win.

    If the conf has one bound of the executors, the other bound gives way where it contradicts.
    """
    config = {
        **scaling_config(record_count, settings.executor_cores, settings.connections),
        "spark.executor.memory": settings.executor_memory,
        "spark.driver.memory": settings.driver_memory,
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        "spark.sql.ui.explainMode": "simple",
        "spark.sql.codegen.wholeStage": "true",
        "spark.sql.codegen.factoryMode": (
            "NO_CODEGEN" if record_count <= INTERPRETED_RECORDS else "FALLBACK"
        ),
        # The three facts reuse more compiled classes than the hundred that Spark keeps by default.
        "spark.sql.codegen.cache.maxEntries": "1000",
        # Lists are aggregated in the order of their groups, which one sort makes for all steps.
        # Spark's hash map gives up at 128 groups, and sorts what is left for each step.
        "spark.sql.execution.useObjectHashAggregateExec": "false",
        # Recording the Python line of each column takes several Java calls per column.
        "spark.python.sql.dataFrameDebugging.enabled": "false",
    }
    if settings.cluster == "local":
        config |= {
            # Retry a failed task once, as when its Python worker was killed.
            "spark.master": settings.master or f"local[{_own_cores(settings.connections)},2]",
            # Listen on loopback only, and offer no web page.
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.ui.enabled": "false",
            "spark.ui.showConsoleProgress": "false",
            # Nobody looks at finished queries; their plans would fill the memory in long runs.
            "spark.sql.ui.retainedExecutions": "10",
            "spark.ui.retainedJobs": "50",
            "spark.ui.retainedStages": "50",
            "spark.driver.extraJavaOptions": f"-Dlog4j2.configurationFile={_LOG_SETTINGS.as_uri()}",
        }
        if CLASS_ARCHIVE.exists():
            # If the archive does not fit, Java warns: to the log, not to standard output.
            config["spark.driver.extraJavaOptions"] += (
                f' "-XX:SharedArchiveFile={CLASS_ARCHIVE}" -Xlog:disable -Xlog:all=warning:stderr'
            )
        if record_count <= QUICK_RECORDS:
            config["spark.driver.extraJavaOptions"] += f" {_QUICK_JAVA}"
            config["spark.sql.codegen.wholeStage"] = "false"
        else:
            config["spark.driver.extraJavaOptions"] += " -XX:+UseParallelGC"
    elif settings.master is not None:
        config["spark.master"] = settings.master
    return _with_agreeing_bounds({**config, **settings.conf}, settings.conf)


def _with_agreeing_bounds(config: dict[str, str], chosen: Mapping[str, str]) -> dict[str, str]:
    """Return a configuration in which the executors' bounds that nobody chose fit those chosen."""
    try:
        least, first, most = (int(config[name]) for name in _EXECUTORS)
    except ValueError:
        # Spark names the number that is none.
        return config
    if _EXECUTORS[0] not in chosen:
        least = min(least, most)
    if _EXECUTORS[2] not in chosen:
        most = max(least, most)
    if _EXECUTORS[1] not in chosen:
        first = min(max(first, least), most)
    return {**config, **dict(zip(_EXECUTORS, map(str, (least, first, most)), strict=True))}


def _own_cores(connections: int) -> str:
    """Return how many cores of this machine Spark uses: all, if each can have a connection."""
    return "*" if (os.cpu_count() or 1) <= connections else str(connections)


def of_java(config: Mapping[str, str]) -> dict[str, str]:
    """Return the settings that Java needs at its start; the others are those of the session."""
    later = ("spark.sql.", "spark.dynamicAllocation.", "spark.python.")
    return {name: value for name, value in config.items() if not name.startswith(later)}


def of_session(config: Mapping[str, str]) -> dict[str, str]:
    """Return the settings that each session of a running application may have of its own."""
    return {
        name: value
        for name, value in config.items()
        if name.startswith("spark.sql.") and name not in _OF_APPLICATION
    }


def of_load(config: Mapping[str, str]) -> dict[str, str]:
    """Return the settings that follow from the records of a load."""
    return {name: config[name] for name in _PER_QUERY}


def is_quick(config: Mapping[str, str]) -> bool:
    """Return whether Java has the options for a load that is over before it is compiled."""
    return _QUICK_JAVA in config.get("spark.driver.extraJavaOptions", "")
