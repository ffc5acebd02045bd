"""Resources: the database and the Spark session, made from the settings that they are given.

Settings are an object, not configuration: Dagster keeps no copy of them, and so of no secret.
"""

# No `from __future__ import annotations`: Dagster must see `ResourceDependency` as a type.
from dagster import ConfigurableResource, ResourceDependency
from dagster_pyspark import LazyPySparkResource
from pydantic import Field
from pyspark.sql import SparkSession

from mcq_analytics.postgres.database import Database, open_database
from mcq_analytics.settings import Settings
from mcq_analytics.spark.connect import connected_to
from mcq_analytics.spark.session import spark_session, start_early


class DatabaseResource(ConfigurableResource[Database]):
    """The database of the settings.

    >>> DatabaseResource(settings=load_settings()).open()  # doctest: +SKIP
    """

    settings: ResourceDependency[Settings]

    def open(self) -> Database:
        """Return the database; in `dev` without a URL, start the embedded server."""
        return open_database(self.settings)


class ScalingSparkResource(LazyPySparkResource):
    """A Spark session, started when it is first needed and sized by the records of the run.

    All facts of a run share it, and so do later runs of the process. Some of its settings are fixed
    at its start, for a load of `largest_load` records or that of the first run if it is larger.
    """

    spark_config: dict[str, str] = Field(
        default_factory=dict, description="Not used: the settings configure the cluster"
    )
    settings: ResourceDependency[Settings]
    largest_load: int = Field(
        default=0, description="Records of the largest run of this process, if known"
    )

    def session(self, record_count: int) -> SparkSession:
        """Return the session, set for a load of about `record_count` records."""
        cluster, home = self.settings.spark, self.settings.home
        if record_count < self.largest_load:
            spark_session(cluster, home, self.largest_load)
        self._spark_session = spark_session(cluster, home, record_count)
        return self._spark_session

    @property
    def place(self) -> str:
        """Where Spark computes: a server's address, or in this process."""
        return str(connected_to() or "in the process of the run")

    def start_early(self, hours: int) -> None:
        """Start a session in the background for a run over some hours."""
        if self._spark_session is None and self.largest_load == 0:
            start_early(self.settings.spark, self.settings.home, hours)

    def _init_session(self) -> None:
        if self._spark_session is None:
            self.session(record_count=0)
