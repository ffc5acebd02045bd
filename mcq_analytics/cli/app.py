"""The command line, `mcq-analytics`: one function a command, and how errors are shown.

What commands do is in `launching`, `quality` and `sample`. Imports that are slow stand in the
commands that need them, so that the others start at once.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.console import Console
from rich.table import Table

from mcq_analytics.errors import UsageError
from mcq_analytics.masking import mask
from mcq_analytics.model.windows import (
    HOUR,
    Window,
    floor_hour,
    format_hour,
    last_closed_hour_end,
    parse_time,
)
from mcq_analytics.progress import progress_bar
from mcq_analytics.settings import demo_start, load_settings

if TYPE_CHECKING:
    from dagster import DagsterInstance
    from sqlalchemy import Connection

    from mcq_analytics.launching.backfills import Piece
    from mcq_analytics.postgres.database import Database
    from mcq_analytics.postgres.inspection import BaseTables
    from mcq_analytics.settings import Settings

Result = TypeVar("Result")

DEMO_STUDENTS = 300
DEMO_HOURS = 48
ROWS_SHOWN = 5
UI_HOST = "127.0.0.1"
UI_PORT = 3000


class Commands(click.Group):
    """A group whose errors are one clear line on stderr, with the trace only when asked for."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        """Run a command and end the process: 0 when it did what it says, 1 or 2 when not."""
        arguments = list(sys.argv[1:] if args is None else args)
        extra["standalone_mode"] = False
        try:
            sys.exit(super().main(arguments, *rest, **extra) or 0)
        except click.exceptions.Abort:
            click.echo("interrupted", err=True)
            sys.exit(130)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except Exception as error:
            from mcq_analytics.postgres.errors import explain  # noqa: PLC0415

            if "--verbose" in arguments:
                click.echo(mask(traceback.format_exc()), err=True)
            click.echo(f"error: {mask(str(explain(error, 'the command failed')))}", err=True)
            sys.exit(2 if isinstance(error, UsageError) else 1)


def _verbose_option(command: Callable[..., None]) -> Callable[..., None]:
    """Take --verbose after the name of a command too; `Commands.main` looks for it."""
    return click.option("--verbose", is_flag=True, expose_value=False, help="Show error traces.")(
        command
    )


def _force_option(command: Callable[..., None]) -> Callable[..., None]:
    """Take --force, without which the command writes no rows into production."""
    return click.option("--force", is_flag=True, help="Write even where MCQ_ENV is prod.")(command)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mcq_analytics")
@_verbose_option
def main() -> None:
    """Exact, hourly analytics of multiple-choice tests."""


@main.command("init-db")
@click.option(
    "--base-tables", is_flag=True, help="Create missing base tables too, for development and tests."
)
@_verbose_option
def init_db(base_tables: bool) -> None:
    """Create or migrate the fact schema. Base tables that exist are never altered."""
    settings, database = _open()
    created, missing = _initialise(database, settings, with_base_tables=base_tables)
    if created:
        click.echo(f"created the base tables {', '.join(created)} in {settings.source_schema}")
    click.echo(f"the fact schema {settings.fact_schema} is up to date")
    if missing:
        click.echo("the base tables lack indexes that keep an hour cheap; their owner may run:")
        for statement in missing:
            click.echo(f"  {statement};")


@main.command("load-csv")
@click.argument("directory", type=click.Path(path_type=Path))
@_force_option
@_verbose_option
def load_csv(directory: Path, force: bool) -> None:
    """Load answers.csv, questions.csv, sessions.csv and submissions.csv from DIRECTORY.

    All or nothing: a bad row stops it with file, line and reason. Where MCQ_ENV is prod, only with
    --force.
    """
    from mcq_analytics.sample import csv_load  # noqa: PLC0415

    _, database = _open_to_fill("load-csv", force)
    base = _base_tables(database)
    with progress_bar("loading rows") as advance:
        counts = csv_load.load_csv(
            database, base, directory, lambda table, rows: advance(rows, table)
        )
    click.echo("loaded " + _counted(counts))


@main.command()
@click.option("--students", default=200, show_default=True, help="Number of students.")
@click.option("--start", default=None, help="First moment [default: MCQ_PARTITION_START].")
@click.option("--hours", default=48, show_default=True, help="Hours that the sample spans.")
@click.option("--seed", default=1, show_default=True, help="The same seed, the same sample.")
@_force_option
@_verbose_option
def generate(students: int, start: str | None, hours: int, seed: int, force: bool) -> None:
    """Put a realistic sample into the base tables, which must be there (init-db --base-tables).

    Where MCQ_ENV is prod, only with --force.
    """
    settings, database = _open_to_fill("generate", force)
    begin = parse_time(start) if start else settings.partition_start
    _generate(database, students=students, start=begin, hours=hours, seed=seed)


@main.command()
@click.option("--start", default=None, help="First hour, ISO 8601 [default: first not done].")
@click.option("--end", default=None, help="End, exclusive [default: the end of the last hour].")
@click.option(
    "--lock-timeout",
    type=click.IntRange(min=0),
    default=None,
    help="Seconds to wait for another run of the same fact [default: MCQ_LOCK_TIMEOUT].",
)
@_verbose_option
def run(start: str | None, end: str | None, lock_timeout: int | None) -> None:
    """Compute the facts over a window here and now, recorded on the Dagster instance."""
    if lock_timeout is not None:
        # The run's resources read the settings for themselves.
        os.environ["MCQ_LOCK_TIMEOUT"] = str(lock_timeout)
    _run(start, end)


@main.command()
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
    help="Hours of a run at most; hourly runs get in between.",
)
@click.option("--dry-run", is_flag=True, help="List the runs, and submit none.")
@_verbose_option
def backfill(start: str, end: str, dry_run: bool, **options: Any) -> None:
    """Let the running Dagster daemon compute a window, and follow it.

    With both --only-missing and --only-failed: the hours of either. Ctrl-C ends the following, not
    the backfill.
    """
    settings, database = _open()
    _base_tables(database)

    from dagster import DagsterInstance  # noqa: PLC0415

    from mcq_analytics.launching import backfills, in_process  # noqa: PLC0415

    window = in_process.window_to_run(database, settings, start, end)
    in_process.ensure_dagster_home(settings)
    with DagsterInstance.get() as instance:
        pieces = backfills.plan(instance, database, settings, window, **options) if window else []
        if not pieces:
            click.echo("nothing to do: there are no such hours")
        elif dry_run:
            runs = [run for piece in pieces for run in piece.runs]
            _show(
                f"{len(runs)} runs",
                ("hours", "window", "facts"),
                [(f"{run.window.hours:,}", str(run.window), ", ".join(run.facts)) for run in runs],
            )
        else:
            _backfill(instance, settings, pieces)


def _backfill(instance: DagsterInstance, settings: Settings, pieces: list[Piece]) -> None:
    from mcq_analytics.launching import backfills  # noqa: PLC0415

    hours = sum(piece.partitions for piece in pieces)
    ids = backfills.submit(instance, settings, pieces)
    pages = [f"{settings.webserver_url}/runs/b/{backfill_id}" for backfill_id in ids]
    try:
        for page in pages:
            click.echo(f"submitted {page}")
        with progress_bar("computing hours of facts", total=hours) as advance:
            backfills.follow(instance, ids, advance)
    except KeyboardInterrupt:
        click.echo(f"it goes on: follow or cancel it at {', '.join(pages)}", err=True)
        sys.exit(130)
    click.echo(f"done: {hours:,} hours of facts")


@main.command("alert-test")
@_verbose_option
def alert_test() -> None:
    """Send one test message as alerts are sent; done only when it was accepted."""
    from mcq_analytics.alerting.send import send_alert  # noqa: PLC0415

    alerts = load_settings().alerts
    send_alert("a test of mcq_analytics: alerts reach you here", alerts)
    click.echo(f"sent by {alerts.method}")


@main.command()
@click.option("--question", default=None, help="Only this question_id [default: all of them].")
@click.option("--dry-run", is_flag=True, help="Say what would move, and compute nothing.")
@_verbose_option
def rescore(question: str | None, dry_run: bool) -> None:
    """Apply corrected answer keys and expiries here and now, and say what they move.

    The late data sensor does so by itself within hours; this does it at once.
    """
    from mcq_analytics.quality.rescore import find_rescore  # noqa: PLC0415

    settings, database = _open()
    with progress_bar("comparing hours") as advance:
        found = find_rescore(database, settings, question, lambda hours: advance(hours, ""))
    if not found.windows:
        click.echo("nothing to do: the facts are what the base tables give")
        return
    moves = found.moves
    if not dry_run:
        from mcq_analytics.launching import in_process  # noqa: PLC0415

        total = sum(window.hours for window in found.windows)
        with progress_bar("computing hours", total=total) as advance:
            in_process.run_windows(
                settings,
                found.windows,
                lambda hours, until: advance(hours, f"to {format_hour(until)}"),
            )
    verb = "would move" if dry_run else "moved"
    click.echo(f"{found.stale_hours:,} hours differ from the base tables")
    click.echo(f"{verb} {moves.rows:,} question results of {moves.students:,} students")
    if moves.before is not None and moves.after is not None:
        click.echo(
            f"their mean accuracy: {moves.before:.2f} % before, {moves.after:.2f} % after, "
            f"{moves.after - moves.before:+.2f} percentage points"
        )


@main.command()
@_verbose_option
def status() -> None:
    """Show per fact what is done, missing and failed. Exit 1 when something is failed."""
    from mcq_analytics.quality.status import CAUSES_NAMED, fact_statuses  # noqa: PLC0415

    settings, database = _open()

    from dagster import DagsterInstance  # noqa: PLC0415
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

    from mcq_analytics.definitions.run_state import hour_outcomes  # noqa: PLC0415
    from mcq_analytics.definitions.run_state.liveness import end_dead_runs  # noqa: PLC0415
    from mcq_analytics.launching import in_process  # noqa: PLC0415
    from mcq_analytics.postgres.errors import explaining  # noqa: PLC0415

    in_process.ensure_dagster_home(settings)
    with (
        explaining("reading the records of runs", SQLAlchemyError),
        DagsterInstance.get() as instance,
    ):
        end_dead_runs(instance)
        engine = database.engine()
        hour_outcomes.record_ended_runs(instance, settings, engine)
        wrong = hour_outcomes.wrong_hours(instance, engine, settings)
    statuses = fact_statuses(database, settings, wrong)
    _show(
        "",
        ("fact", "last hour done", "missing hours", "failed hours", "lag", "rows"),
        [
            (
                fact.name,
                format_hour(fact.done_until - HOUR) if fact.done_until else "none",
                f"{fact.missing_hours:,}",
                f"{fact.failed_hours:,}",
                f"{fact.lag_hours:,} h",
                f"{fact.rows:,}",
            )
            for fact in statuses
        ],
    )
    failed = [fact for fact in statuses if fact.failed_hours]
    for fact in failed:
        for verb, causes in (("failed", fact.failed), ("is wrong", fact.wrong)):
            for cause in causes[:CAUSES_NAMED]:
                click.echo(f"{fact.name} {verb} over {cause}", err=True)
            if len(causes) > CAUSES_NAMED:
                more = len(causes) - CAUSES_NAMED
                click.echo(f"{fact.name} {verb} for {more} more reasons", err=True)
    if failed:
        sys.exit(1)


@main.command()
@click.option("--no-ui", is_flag=True, help="Exit after the facts are shown.")
@_force_option
@_verbose_option
def demo(no_ui: bool, force: bool) -> None:
    """Show all of it: a sample, its facts computed hour by hour, and the Dagster UI.

    Where MCQ_ENV is prod, only with --force.
    """
    settings, database = _open_to_fill("demo", force)
    _initialise(database, settings, with_base_tables=True)
    span = _span(database)
    is_sample = settings.database_url is None
    if span is None:
        start = last_closed_hour_end() - DEMO_HOURS * HOUR
        _generate(database, students=DEMO_STUDENTS, start=start, hours=DEMO_HOURS, seed=1)
        span = Window(start, start + DEMO_HOURS * HOUR)
        is_sample = True
    if is_sample and settings.env != "prod":
        _note_start(settings, span.start)
    if not _has_succeeded(database, settings, span):
        _run(format_hour(span.start), format_hour(span.end))
    _print_facts(database)
    if not no_ui:
        from mcq_analytics.launching.ui import serve  # noqa: PLC0415

        serve(UI_HOST, UI_PORT)


def _open() -> tuple[Settings, Database]:
    from mcq_analytics.postgres.database import open_database  # noqa: PLC0415

    settings = load_settings()
    return settings, open_database(settings)


def _open_to_fill(command: str, force: bool) -> tuple[Settings, Database]:
    """Open the database for a command that adds rows to the base tables: not production's.

    Raises:
        UsageError: the environment is `prod`, and the command is not forced.

    """
    if not force and load_settings().env == "prod":
        raise UsageError(
            f"{command} writes rows into the base tables, and MCQ_ENV is prod: set MCQ_ENV to dev "
            "or test, or give --force if production is to have them"
        )
    return _open()


def _within(database: Database, doing: str, work: Callable[[Connection], Result]) -> Result:
    """Do some work in one transaction; errors say what was being done."""
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

    from mcq_analytics.postgres.errors import explaining  # noqa: PLC0415

    with explaining(doing, SQLAlchemyError), database.engine().begin() as connection:
        return work(connection)


def _base_tables(database: Database) -> BaseTables:
    from mcq_analytics.postgres.inspection import inspect_base_tables  # noqa: PLC0415

    return _within(
        database,
        "reading the base tables",
        lambda connection: inspect_base_tables(connection, database.source_schema),
    )


def _initialise(
    database: Database, settings: Settings, *, with_base_tables: bool
) -> tuple[list[str], list[str]]:
    """Return the base tables that were created and the index statements that are wanted."""
    from mcq_analytics.postgres import inspection, schema  # noqa: PLC0415

    def work(connection: Connection) -> tuple[list[str], list[str]]:
        created = []
        if with_base_tables:
            created = inspection.create_missing_base_tables(connection, settings.source_schema)
        base = inspection.inspect_base_tables(connection, settings.source_schema)
        schema.migrate(connection, settings.fact_schema, schema.key_types(base))
        return created, inspection.missing_indexes(connection, base, settings.source_schema)

    return _within(database, "setting up the database", work)


def _generate(database: Database, *, students: int, start: datetime, hours: int, seed: int) -> None:
    from mcq_analytics.sample.sample_load import load_sample  # noqa: PLC0415

    base = _base_tables(database)
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
    click.echo("generated " + _counted(counts))


def _span(database: Database) -> Window | None:
    """Return the hours from the first to the last row of the base tables that are over."""
    from sqlalchemy import text  # noqa: PLC0415

    from mcq_analytics.compute.selections import EARLIEST, quoted  # noqa: PLC0415

    schema = database.source_schema
    statement = text(
        "SELECT min(moment), max(moment) FROM ("
        f'SELECT CAST("timestamp" AS timestamptz) AS moment FROM {quoted(schema, "answers")} '
        f"UNION ALL SELECT submit_time FROM {quoted(schema, 'submissions')}"
        f") AS rows WHERE moment BETWEEN {EARLIEST} AND now()"
    )
    first, last = _within(
        database,
        "reading the base tables",
        lambda connection: connection.execute(statement).one(),
    )
    if first is None:
        return None
    start = floor_hour(first)
    return Window(start, max(start + HOUR, min(floor_hour(last) + HOUR, last_closed_hour_end())))


def _has_succeeded(database: Database, settings: Settings, window: Window) -> bool:
    from mcq_analytics.model.facts import FACTS  # noqa: PLC0415
    from mcq_analytics.postgres.fact_tables import SUCCESS  # noqa: PLC0415
    from mcq_analytics.postgres.hours import hour_statuses  # noqa: PLC0415

    engine = database.engine()
    hours = [hour.start for hour in window.chunks(1)]
    return all(
        statuses.get(hour) == SUCCESS
        for fact in FACTS
        for statuses in [hour_statuses(engine, fact.name, settings)]
        for hour in hours
    )


def _run(start: str | None, end: str | None) -> None:
    settings, database = _open()
    _base_tables(database)

    from mcq_analytics.launching import in_process  # noqa: PLC0415

    window = in_process.window_to_run(database, settings, start, end)
    if window is None:
        click.echo("nothing to do: all hours that are over have succeeded")
        return
    with progress_bar("computing hours", total=window.hours) as advance:
        totals = in_process.run_window(
            settings, window, lambda hours, until: advance(hours, f"to {format_hour(until)}")
        )
    _show(
        f"{window.hours:,} hours, {format_hour(window.start)} to {format_hour(window.end)}",
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


def _note_start(settings: Settings, start: datetime) -> None:
    """Let all processes of this home begin where the sample does: nothing was missed before it."""
    if demo_start.note_start(settings.home, settings.database_url, start):
        click.echo(
            f"the first hour here is {format_hour(start)}, by {settings.home / demo_start.FILE}; "
            "MCQ_PARTITION_START would go before it"
        )


def _print_facts(database: Database) -> None:
    """Print the number of rows of each fact, and the first few of them."""
    from sqlalchemy import text  # noqa: PLC0415

    from mcq_analytics.compute.selections import quoted  # noqa: PLC0415
    from mcq_analytics.model.facts import FACTS  # noqa: PLC0415

    def work(connection: Connection) -> None:
        for fact in FACTS:
            columns = (*fact.key, *fact.column_names)
            table = quoted(database.fact_schema, fact.name)
            count = connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()
            rows = connection.execute(
                text(
                    f"SELECT {', '.join(map(quoted, columns))} FROM {table} "
                    f"ORDER BY {', '.join(map(quoted, fact.key))} LIMIT {ROWS_SHOWN}"
                )
            )
            title = f"{fact.name}: {count:,} rows, the first {ROWS_SHOWN}"
            _show(title, columns, [tuple(map(_cell, row)) for row in rows])

    _within(database, "reading the facts", work)


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{rows:,} {table}" for table, rows in counts.items())


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.2f}"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    return str(value)


def _show(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print a table in a terminal, and tab-separated lines elsewhere."""
    console = Console()
    if not console.is_terminal:
        if title:
            click.echo(title)
        for row in (columns, *rows):
            click.echo("\t".join(row))
        return
    table = Table(title=title or None, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)
