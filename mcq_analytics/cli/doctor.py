"""The command `doctor`: what is wrong where runs are to compute, and what to do."""

from __future__ import annotations

import sys
from dataclasses import replace

import click

from mcq_analytics.cli.options import verbose_option
from mcq_analytics.cli.output import number_of
from mcq_analytics.settings import load_settings
from mcq_analytics.settings.spark import cluster_settings
from mcq_analytics.settings.variables import read_variables


@click.command()
@click.option("--cluster", default=None, help="Spark cluster [default: MCQ_SPARK_CLUSTER].")
@verbose_option
def doctor(cluster: str | None) -> None:
    """Go the whole way of a run, and say what to mend. Exits with 1 if something is wrong.

    Examines Java, disk, PostgreSQL (clock, rights, tables, indexes, connections), and Spark: the
    server or master, and on its executors the package, PostgreSQL, clock and disk. Changes nothing.
    """
    from mcq_analytics.doctor.findings import Grade  # noqa: PLC0415
    from mcq_analytics.doctor.visit import findings  # noqa: PLC0415

    settings = load_settings()
    if cluster is not None:
        settings = replace(settings, spark=cluster_settings(cluster, read_variables()))
    wrong = 0
    for finding in findings(settings):
        click.echo(f"{finding.grade.value:<6}{finding.topic}: {finding.text}")
        wrong += finding.grade is Grade.WRONG
    click.echo("nothing is wrong" if not wrong else f"{number_of(wrong, 'thing')} to mend")
    if wrong:
        sys.exit(1)
