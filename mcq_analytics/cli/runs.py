"""Commands that compute facts: `run`, here and now, and `backfill`, by the running daemon."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from mcq_analytics.cli.opening import base_tables, open_from_settings
from mcq_analytics.cli.options import verbose_option
from mcq_analytics.cli.output import number_of, show_table
from mcq_analytics.errors import McqError
from mcq_analytics.model.windows import Window, format_hour, parse_hour
from mcq_analytics.progress import progress_bar
from mcq_analytics.settings import load_settings

if TYPE_CHECKING:
    from dagster import DagsterInstance

    from mcq_analytics.launching.backfills import Piece
    from mcq_analytics.postgres.database import Database
    from mcq_analytics.settings import Settings


@click.command()
@click.option("--start", default=None, help="First hour, ISO 8601 [default: first not done].")
@click.option("--end", default=None, help="End, exclusive [default: end of the last closed hour].")
@click.option(
    "--lock-timeout",
    type=click.IntRange(min=0),
    default=None,
    help="Seconds to wait for another run of the facts [default: MCQ_LOCK_TIMEOUT].",
)
@verbose_option
def run(start: str | None, end: str | None, lock_timeout: int | None) -> None:
    """Compute the facts over a window here and now, recorded on the Dagster instance."""
    settings = load_settings()
    if lock_timeout is not None:
        settings = replace(settings, lock_seconds=lock_timeout)

    from mcq_analytics.spark.session import start_early  # noqa: PLC0415

    # While Dagster is imported and the database finds the rows.
    start_early(settings.spark, settings.home, _hours(start, end))

    from mcq_analytics.postgres.database import open_database  # noqa: PLC0415

    run_and_report(settings, open_database(settings), start, end)


def _hours(start: str | None, end: str | None) -> int:
    """Return how many hours a run is asked for; one if that is not known yet."""
    try:
        return Window(parse_hour(start or ""), parse_hour(end or "")).hours
    except McqError:
        return 1


def run_and_report(
    settings: Settings, database: Database, start: str | None, end: str | None
) -> None:
    """Compute the facts over a window, with a progress bar, and print what changed."""
    base_tables(database)

    from mcq_analytics.launching import in_process  # noqa: PLC0415

    window = in_process.window_to_run(database, settings, start, end)
    if window is None:
        click.echo(
            "nothing to do: all closed hours have succeeded (rescore finds rows that changed since)"
        )
        return
    with progress_bar("computing hours", total=window.hours) as advance:
        totals = in_process.run_window(
            settings, window, lambda hours, until: advance(hours, f"to {format_hour(until)}")
        )
    show_table(
        f"{number_of(window.hours, 'hour')}, "
        f"{format_hour(window.start)} to {format_hour(window.end)}",
        ("fact", "rows read", "inserted", "updated", "deleted", "seconds"),
        [
            (
                name,
                f"{total.rows_read:,}",
                f"{total.rows_inserted:,}",
                f"{total.rows_updated:,}",
                f"{total.rows_deleted:,}",
                f"{total.seconds:.1f}",
            )
            for name, total in totals.items()
        ],
    )


@click.command()
@click.option("--start", required=True, help="First hour, ISO 8601.")
@click.option("--end", required=True, help="End, exclusive.")
@click.option("--only-missing", is_flag=True, help="Only hours that were never attempted.")
@click.option("--only-failed", is_flag=True, help="Only hours whose latest attempt failed.")
@click.option(
    "--chunk",
    type=click.IntRange(min=1),
    default=168,
    show_default=True,
    metavar="HOURS",
    help="Maximum hours per run; hourly runs go first between two of them.",
)
@click.option("--dry-run", is_flag=True, help="List the runs without submitting them.")
@verbose_option
def backfill(start: str, end: str, dry_run: bool, **options: Any) -> None:
    """Submit a backfill of a window to the running Dagster daemon, and follow it.

    With both --only-missing and --only-failed: hours that are either. Ctrl-C stops the following;
    the backfill continues.
    """
    settings, database = open_from_settings()
    base_tables(database)

    from mcq_analytics.launching import backfills, in_process  # noqa: PLC0415

    window = in_process.window_to_run(database, settings, start, end)
    with in_process.dagster_instance(settings) as instance:
        pieces = backfills.plan(instance, database, settings, window, **options) if window else []
        if not pieces:
            click.echo("nothing to do: no such hours")
        elif dry_run:
            runs = [run for piece in pieces for run in piece.runs]
            show_table(
                number_of(len(runs), "run"),
                ("hours", "window"),
                [(f"{run.hours:,}", str(run)) for run in runs],
            )
        else:
            _submit_and_follow(instance, settings, pieces)


def _submit_and_follow(instance: DagsterInstance, settings: Settings, pieces: list[Piece]) -> None:
    from mcq_analytics.launching import backfills  # noqa: PLC0415

    hours = sum(piece.hours for piece in pieces)
    ids = backfills.submit(instance, settings, pieces)
    pages = [f"{settings.webserver_url}/runs/b/{backfill_id}" for backfill_id in ids]
    try:
        for page in pages:
            click.echo(f"submitted {page}")
        with progress_bar("computing hours", total=hours) as advance:
            backfills.follow(instance, ids, advance)
    except KeyboardInterrupt:
        click.echo(f"it continues: follow or cancel it at {', '.join(pages)}", err=True)
        sys.exit(130)
    click.echo(f"done: {number_of(hours, 'hour')}")
