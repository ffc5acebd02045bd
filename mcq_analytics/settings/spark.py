"""Settings of Spark: the cluster, by its name, and the sizes of driver and executors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from pydantic_settings import SettingsConfigDict

from mcq_analytics.errors import McqError
from mcq_analytics.masking import remember
from mcq_analytics.settings.variables import OptionalSecret, Source, Variables

CORES = 2
"""Of an executor, unless a setting says otherwise."""
CONNECTIONS = 64
"""To PostgreSQL, of all tasks at once; its own limit is 100, and others need some."""


@dataclass(frozen=True)
class SparkSettings:
    """A Spark cluster. `conf` holds Spark's own settings, which win over ours.

    `connect` is the host and port of a Spark Connect server, and whether it is reached by TLS;
    `token` is what it asks for. `connections` is how many tasks may be connected to PostgreSQL.
    """

    cluster: str = "local"
    master: str | None = None
    conf: Mapping[str, str] = field(default_factory=dict)
    executor_memory: str = "2g"
    executor_cores: int = CORES
    connections: int = CONNECTIONS
    driver_memory: str = "1200m"
    connect: tuple[str, int, bool] | None = None
    token: str | None = field(default=None, repr=False)
    may_use_server: bool = True


def cluster_settings(cluster: str, variables: Variables) -> SparkSettings:
    """Return the settings of the Spark cluster named `cluster`.

    `local` needs no variables. Any other name needs `SPARK_<NAME>_MASTER`, and may have
    `SPARK_<NAME>_CONF`, a list ``spark.key=value;spark.key=value``. A master ``sc://host:port`` is
    a Spark Connect server; it needs `SPARK_<NAME>_TOKEN`, and with ``/;use_ssl=true`` it is reached
    by TLS.

    Raises:
        McqError: the cluster has no master or token, or one of its variables is malformed; the
            message names it.

    """
    prefix = f"SPARK_{cluster.upper().replace('-', '_')}_"

    class Cluster(Source):
        model_config = SettingsConfigDict(env_prefix=prefix)

        MASTER: str | None = None
        CONF: str = ""
        TOKEN: OptionalSecret = None

    found = Cluster()
    if found.MASTER is None and cluster != "local":
        raise McqError(
            f"the Spark cluster {cluster!r} is not known: set {prefix}MASTER to its master URL, "
            "or MCQ_SPARK_CLUSTER to local"
        )
    token = found.TOKEN.get_secret_value() if found.TOKEN is not None else None
    remember(token)
    connect = _server(f"{prefix}MASTER", found.MASTER)
    if connect is not None and token is None:
        raise McqError(
            f"{prefix}TOKEN is not set: give the token that MCQ_SPARK_SERVER_TOKEN holds where the "
            "Spark server runs"
        )
    return SparkSettings(
        cluster=cluster,
        master=found.MASTER,
        conf=_conf(f"{prefix}CONF", found.CONF),
        executor_memory=variables.MCQ_SPARK_EXECUTOR_MEMORY,
        executor_cores=variables.MCQ_SPARK_EXECUTOR_CORES,
        connections=variables.MCQ_SPARK_CONNECTIONS,
        driver_memory=variables.MCQ_SPARK_DRIVER_MEMORY,
        connect=connect,
        token=token,
        may_use_server=variables.MCQ_SPARK_SERVER,
    )


def _server(variable: str, master: str | None) -> tuple[str, int, bool] | None:
    """Return host and port of a Spark Connect server, and whether it is reached by TLS."""
    if master is None or not master.startswith("sc://"):
        return None
    try:
        url = urlsplit(master)
        host, port = url.hostname, url.port
    except ValueError:
        host, port = None, None
    use_tls = url.path == "/;use_ssl=true"
    if host is None or port is None or not (use_tls or url.path in ("", "/")):
        raise McqError(
            f"{variable} is not of the form sc://host:port or sc://host:port/;use_ssl=true"
        )
    return host, port, use_tls


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
