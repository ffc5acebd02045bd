"""The command that shows everything on a sample: `demo`."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import click

from mcq_analytics.cli.database import fill_with_sample, initialise
from mcq_analytics.cli.opening import open_to_fill, within
from mcq_analytics.cli.options import force_option, verbose_option
from mcq_analytics.cli.output import cell, show_table
from mcq_analytics.cli.runs import run_and_report
from mcq_analytics.model.windows import HOUR, Window, floor_hour, format_hour, last_closed_hour_end
from mcq_analytics.settings import demo_start, load_settings

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from mcq_analytics.postgres.database import Database
    from mcq_analytics.settings import Settings

STUDENTS = 300
HOURS = 48
ROWS_SHOWN = 5
UI_HOST = "127.0.0.1"
UI_PORT = 3000


@click.command()
@click.option("--no-ui", is_flag=True, help="Exit after printing the facts.")
@force_option
@verbose_option
def demo(no_ui: bool, force: bool) -> None:
    """Generate a sample, compute its facts, and open the Dagster UI.

    If MCQ_ENV is prod, it needs --force.
    """
    settings, database = open_to_fill("demo", force)
    initialise(database, settings, with_base_tables=True)
    span = _span(database)
    is_sample = settings.database_url is None
    if span is None:
        start = last_closed_hour_end() - HOURS * HOUR
        fill_with_sample(database, students=STUDENTS, start=start, hours=HOURS, seed=1)
        span = Window(start, start + HOURS * HOUR)
        is_sample = True
    if is_sample and settings.env != "prod":
        _note_start(settings, span.start)
        # The note is a default of the settings.
        settings = load_settings()
    if not _has_succeeded(database, settings, span):
        run_and_report(settings, database, format_hour(span.start), format_hour(span.end))
    _print_facts(database)
    if not no_ui:
        from mcq_analytics.launching.ui import serve  # noqa: PLC0415

        serve(settings, UI_HOST, UI_PORT)


def _span(database: Database) -> Window | None:
    """Return the closed hours from the first to the last row of the base tables."""
    from sqlalchemy import text  # noqa: PLC0415

    from mcq_analytics.compute.base_columns import EARLIEST  # noqa: PLC0415
    from mcq_analytics.postgres.identifiers import quoted  # noqa: PLC0415

    schema = database.source_schema
    statement = text(
        "SELECT min(moment), max(moment) FROM ("
        f'SELECT CAST("timestamp" AS timestamptz) AS moment FROM {quoted(schema, "answers")} '
        f"UNION ALL SELECT submit_time FROM {quoted(schema, 'submissions')}"
        f") AS rows WHERE moment BETWEEN {EARLIEST} AND now()"
    )
    first, last = within(
        database,
        "reading the base tables",
        lambda connection: connection.execute(statement).one(),
    )
    if first is None:
        return None
    start = floor_hour(first)
    return Window(start, max(start + HOUR, min(floor_hour(last) + HOUR, last_closed_hour_end())))


def _note_start(settings: Settings, start: datetime) -> None:
    """Make the sample's first hour the first partition for every process with this MCQ_HOME."""
    if demo_start.note_start(settings.home, settings.database_url, start):
        click.echo(
            f"the first hour is now {format_hour(start)}, from "
            f"{settings.home / demo_start.FILE}; MCQ_PARTITION_START overrides it"
        )


def _has_succeeded(database: Database, settings: Settings, window: Window) -> bool:
    from mcq_analytics.model.facts import FACTS_BY_NAME  # noqa: PLC0415
    from mcq_analytics.postgres.hours import hours_of_facts  # noqa: PLC0415

    facts = hours_of_facts(database.engine(), settings, FACTS_BY_NAME).values()
    return all(hours.succeeded_until(window.start) >= window.end for hours in facts)


def _print_facts(database: Database) -> None:
    """Print how many rows each fact has, and the first few of them."""
    from sqlalchemy import text  # noqa: PLC0415

    from mcq_analytics.model.facts import FACTS  # noqa: PLC0415
    from mcq_analytics.postgres.identifiers import quoted  # noqa: PLC0415

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
            show_table(title, columns, [tuple(map(cell, row)) for row in rows])

    within(database, "reading the facts", work)
