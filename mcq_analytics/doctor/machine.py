"""What a run needs of the machine where it is started: Java and free disk."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from mcq_analytics.doctor.findings import Finding, fine, of_disk
from mcq_analytics.settings.home import ready_home
from mcq_analytics.settings.spark import SparkSettings
from mcq_analytics.spark.java import ensure_java, java_version


def examine_java(settings: SparkSettings, home: Path) -> Iterator[Finding]:
    """Yield which Java would be started.

    Raises:
        McqError: there is none that is new enough.

    """
    if settings.connect is not None:
        yield fine("Java", "runs need none, because Spark is in a server")
        return
    java = ensure_java(ready_home(home))
    yield fine("Java", f"version {java_version(java / 'bin' / 'java')} in {java}")


def examine_disk(settings: SparkSettings, home: Path) -> Iterator[Finding]:
    """Yield how much disk is free for the files of the platform, and for those of Spark."""
    yield of_disk(f"MCQ_HOME ({home})", shutil.disk_usage(ready_home(home)).free)
    if settings.connect is None:
        for directory in _of_spark(settings.conf):
            if directory.is_dir():
                free = shutil.disk_usage(directory).free
                yield of_disk(f"Spark's folder {directory}", free)


def _of_spark(conf: Mapping[str, str]) -> list[Path]:
    """Return where Spark puts what does not fit into its memory."""
    given = os.environ.get("SPARK_LOCAL_DIRS") or conf.get("spark.local.dir")
    return [Path(one) for one in given.split(",")] if given else [Path(tempfile.gettempdir())]
