"""Commands that create and fill tables: `init-db`, `load-csv` and `generate`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mcq_analytics.cli.opening import base_tables, open_from_settings, open_to_fill, within
from mcq_analytics.cli.options import force_option, verbose_option
from mcq_analytics.cli.output import counted
from mcq_analytics.model.facts import MOST_PARTITIONS
from mcq_analytics.model.windows import (
    HOUR,
    floor_hour,
    format_hour,
    last_closed_hour_end,
    parse_time,
)
from mcq_analytics.progress import progress_bar

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from mcq_analytics.postgres.database import Database
    from mcq_analytics.settings import Settings


@dataclass(frozen=True)
class Initialised:
    """What was done, by name: base tables that were created, facts that have other partitions now.

    `missing_indexes` are statements.
    """

    created: list[str]
    partitioned: list[str]
    missing_indexes: list[str]


@click.command("init-db")
@click.option(
    "--base-tables",
    "with_base_tables",
    is_flag=True,
    help="Also create missing base tables, for development and tests.",
)
@click.option(
    "--fact-partitions",
    "partitions",
    type=click.IntRange(1, MOST_PARTITIONS),
    help="Partition the facts of students' tests, by hash, into so many tables; 1: none "
    "[default: as they are].",
)
@verbose_option
def init_db(with_base_tables: bool, partitions: int | None) -> None:
    """Create or migrate the fact schema. Existing base tables are never altered."""
    settings, database = open_from_settings()
    done = initialise(database, settings, with_base_tables=with_base_tables, partitions=partitions)
    if done.created:
        click.echo(f"created the base tables {', '.join(done.created)} in {settings.source_schema}")
    click.echo(f"the fact schema {settings.fact_schema} is up to date")
    for fact in done.partitioned:
        has = "no partitions" if partitions == 1 else f"{partitions} partitions"
        click.echo(f"{fact} has {has} now")
    if done.missing_indexes:
        click.echo("the base tables lack indexes that keep an hour cheap; their owner may run:")
        for statement in done.missing_indexes:
            click.echo(f"  {statement};")


@click.command("load-csv")
@click.argument("directory", type=click.Path(path_type=Path))
@force_option
@verbose_option
def load_csv(directory: Path, force: bool) -> None:
    """Load answers.csv, questions.csv, sessions.csv and submissions.csv from DIRECTORY.

    All or nothing: at a bad row it stops with file, line and reason. If MCQ_ENV is prod, it needs
    --force.
    """
    from mcq_analytics.sample import csv_load  # noqa: PLC0415

    _, database = open_to_fill("load-csv", force)
    base = base_tables(database)
    with progress_bar("loading rows") as advance:
        counts = csv_load.load_csv(
            database, base, directory, lambda table, rows: advance(rows, table)
        )
    click.echo("loaded " + counted(counts))


@click.command()
@click.option("--students", default=200, show_default=True, help="Number of students.")
@click.option("--start", default=None, help="Start of the sample [default: MCQ_PARTITION_START].")
@click.option("--hours", default=48, show_default=True, help="Length of the sample in hours.")
@click.option("--seed", default=1, show_default=True, help="The same seed, the same sample.")
@force_option
@verbose_option
def generate(students: int, start: str | None, hours: int, seed: int, force: bool) -> None:
    """Fill the base tables with a realistic sample. They must exist (init-db --base-tables).

    If MCQ_ENV is prod, it needs --force.
    """
    settings, database = open_to_fill("generate", force)
    begin = parse_time(start) if start else settings.partition_start
    fill_with_sample(database, students=students, start=begin, hours=hours, seed=seed)
    first = floor_hour(begin)
    end = min(floor_hour(begin + (hours + 1) * HOUR), last_closed_hour_end())
    if first < end:
        # A bare `run` leaves out hours that are done already.
        bounds = f"--start {format_hour(first)} --end {format_hour(end)}"
        click.echo(f"compute its facts: mcq-analytics run {bounds}")


def initialise(
    database: Database,
    settings: Settings,
    *,
    with_base_tables: bool,
    partitions: int | None = None,
) -> Initialised:
    """Set up the database."""
    from mcq_analytics.compute.rebuild import rebuild_if_needed  # noqa: PLC0415
    from mcq_analytics.postgres import inspection, schema  # noqa: PLC0415

    def work(connection: Connection) -> Initialised:
        created = []
        if with_base_tables:
            created = inspection.create_missing_base_tables(connection, settings.source_schema)
        base = inspection.inspect_base_tables(connection, settings.source_schema)
        partitioned = schema.migrate(
            connection, settings.fact_schema, schema.key_types(base), partitions
        )
        rebuild_if_needed(connection, base, settings.fact_schema)
        missing = inspection.missing_indexes(connection, base, settings.source_schema)
        return Initialised(created, partitioned, missing)

    return within(database, "setting up the database", work)


def fill_with_sample(
    database: Database, *, students: int, start: datetime, hours: int, seed: int
) -> None:
    """Generate a sample into the base tables, with a progress bar."""
    from mcq_analytics.sample.sample_load import load_sample  # noqa: PLC0415

    base = base_tables(database)
    with progress_bar("generating rows") as advance:
        counts = load_sample(
            database,
            base,
            students=students,
            start=start,
            hours=hours,
            seed=seed,
            progress=lambda table, rows: advance(rows, table),
        )
    click.echo("generated " + counted(counts))
