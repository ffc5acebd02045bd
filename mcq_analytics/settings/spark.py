"""Settings of Spark: the cluster, by its name, and the sizes of driver and executors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic_settings import SettingsConfigDict

from mcq_analytics.errors import McqError
from mcq_analytics.settings.variables import Source, Variables


@dataclass(frozen=True)
class SparkSettings:
    """A Spark cluster. `conf` holds Spark's own settings, which win over ours."""

    cluster: str = "local"
    master: str | None = None
    conf: Mapping[str, str] = field(default_factory=dict)
    executor_memory: str = "2g"
    executor_cores: int = 2
    driver_memory: str = "1200m"


def cluster_settings(cluster: str, variables: Variables) -> SparkSettings:
    """Return the settings of the Spark cluster named `cluster`.

    `local` needs no variables. Any other name needs `SPARK_<NAME>_MASTER`, and may have
    `SPARK_<NAME>_CONF`, a list ``spark.key=value;spark.key=value``.

    Raises:
        McqError: the cluster has no master, or its conf is malformed; the message names the
            variable.

    """
    prefix = f"SPARK_{cluster.upper().replace('-', '_')}_"

    class Cluster(Source):
        model_config = SettingsConfigDict(env_prefix=prefix)

        MASTER: str | None = None
        CONF: str = ""

    found = Cluster()
    if found.MASTER is None and cluster != "local":
        raise McqError(
            f"the Spark cluster {cluster!r} is not known: set {prefix}MASTER to its master URL, "
            "or MCQ_SPARK_CLUSTER to local"
        )
    return SparkSettings(
        cluster=cluster,
        master=found.MASTER,
        conf=_conf(f"{prefix}CONF", found.CONF),
        executor_memory=variables.MCQ_SPARK_EXECUTOR_MEMORY,
        executor_cores=variables.MCQ_SPARK_EXECUTOR_CORES,
        driver_memory=variables.MCQ_SPARK_DRIVER_MEMORY,
    )


def _conf(variable: str, text: str) -> dict[str, str]:
    conf: dict[str, str] = {}
    for entry in text.split(";"):
        if not entry.strip():
            continue
        key, equals, value = entry.strip().partition("=")
        if not equals or not key.startswith("spark."):
            raise McqError(f"{variable}: {key!r} is not of the form spark.key=value")
        conf[key] = value
    return conf
