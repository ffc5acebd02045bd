"""Resources: the database by environment, the Spark session by load. No secret is configured."""

from __future__ import annotations

from dagster import ConfigurableResource
from dagster_pyspark import LazyPySparkResource
from pydantic import Field
from pyspark.sql import SparkSession

from mcq_analytics.postgres.database import Database, open_database
from mcq_analytics.settings import load_settings
from mcq_analytics.spark.session import initialize_spark_session_with_scaling


class DatabaseResource(ConfigurableResource[Database]):
    """The database of the settings. Its URL comes from the process environment or `.env` alone."""

    environment: str | None = Field(
        default=None, description="dev, test or prod; where it is not given, MCQ_ENV decides"
    )

    def open(self) -> Database:
        """Return the database; in `dev` without a URL the embedded server is started."""
        return open_database(load_settings(self.environment))


class ScalingSparkResource(LazyPySparkResource):
    """A Spark session that is started when it is first needed, sized by the records of the run.

    It serves all facts of a run, and stays for later runs of the process: what is fixed when it
    starts is then for the largest of them.
    """

    spark_config: dict[str, str] = Field(
        default_factory=dict, description="Settings come from the named cluster, not from here"
    )
    cluster_name: str | None = Field(
        default=None, description="A cluster of the settings; else MCQ_SPARK_CLUSTER decides"
    )

    largest_load: int = Field(
        default=0, description="Records of the largest run of this process, where they are known"
    )

    def session(self, record_count: int) -> SparkSession:
        """Return the session for a load of about `record_count` records."""
        cluster = self.cluster_name or load_settings().spark.cluster
        if record_count < self.largest_load:
            initialize_spark_session_with_scaling(cluster, self.largest_load)
        self._spark_session = initialize_spark_session_with_scaling(cluster, record_count)
        return self._spark_session

    def _init_session(self) -> None:
        if self._spark_session is None:
            self.session(record_count=0)
