"""The command `package-environment`: what Spark's executors need where nothing is installed."""

from __future__ import annotations

from pathlib import Path

import click

from mcq_analytics.cli.options import verbose_option


@click.command()
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("mcq-environment.tar.gz"),
    show_default=True,
    help="The archive to write.",
)
@verbose_option
def package_environment(output: Path) -> None:
    """Write the archive that Spark's executors need on machines without this package.

    It holds this package and what Spark's tasks import. docs/clusters has the settings for each
    kind of cluster.
    """
    from mcq_analytics.spark import environment  # noqa: PLC0415

    packed = environment.package_environment(output)
    click.echo(
        f"{packed.path}: {packed.size / 2**20:.0f} MiB for Python {packed.python} at "
        f"{packed.interpreter}; use it with spark.pyspark.python=python3, "
        f"spark.archives={packed.path.absolute()}#{environment.FOLDER} and "
        f"spark.executorEnv.PATH={environment.FOLDER}/bin:/usr/local/bin:/usr/bin:/bin "
        "in SPARK_<NAME>_CONF"
    )
