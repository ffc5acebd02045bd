"""The command `spark-server`: one warm Spark for many runs."""

from __future__ import annotations

import click

from mcq_analytics.cli.options import verbose_option
from mcq_analytics.errors import McqError
from mcq_analytics.settings.spark import cluster_settings
from mcq_analytics.settings.variables import read_variables


@click.command()
@click.option(
    "--records",
    type=click.IntRange(min=0),
    default=2_000_000,
    show_default=True,
    help="Records of the largest run, which size the server and its executors.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=None, help="Port [default: free].")
@click.option("--follow", type=int, default=None, help="End with the process of this id.")
@click.option("--check", is_flag=True, help="Only tell whether the server answers.")
@verbose_option
def spark_server(
    records: int, host: str, port: int | None, follow: int | None, check: bool
) -> None:
    """Keep a Spark Connect server up, on which runs compute without a Java of their own.

    Runs with the same MCQ_HOME use it by themselves; others by SPARK_<NAME>_MASTER and
    SPARK_<NAME>_TOKEN. It asks for MCQ_SPARK_SERVER_TOKEN, or for a token that it makes.
    """
    variables = read_variables()
    settings = cluster_settings(variables.MCQ_SPARK_CLUSTER, variables)
    if check:
        from mcq_analytics.spark.connect import connect  # noqa: PLC0415
        from mcq_analytics.spark.endpoints import endpoint_of, local_endpoint  # noqa: PLC0415

        # A server that computes on a cluster is not one of the cluster `local`.
        endpoint = endpoint_of(settings, variables.home) or local_endpoint(variables.home)
        if endpoint is None:
            raise McqError(f"no Spark server runs for {variables.home}")
        version = connect(endpoint, {}).version
        click.echo(f"the Spark server {endpoint} answers (Spark {version})")
        return

    from mcq_analytics.spark.server import endpoint_to_serve, serve  # noqa: PLC0415

    serve(
        settings,
        variables.home,
        endpoint_to_serve(host, port, variables.secret("MCQ_SPARK_SERVER_TOKEN")),
        records=records,
        follow=follow,
        is_warmed=variables.MCQ_SPARK_WARM_UP,
        tell=lambda line: click.echo(line, err=True),
    )
