"""What commands print: tables, cells and counts. Progress bars are in `progress`."""

from __future__ import annotations

from datetime import datetime

import click
from rich.console import Console
from rich.table import Table


def show_table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print a table if this is a terminal, else tab-separated lines."""
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


def cell(value: object) -> str:
    """Return a value of a fact as the text of a cell."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.2f}"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    return str(value)


def number_of(count: int, noun: str) -> str:
    """Return a number with its noun: ``1 hour``, ``1,000 hours``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def counted(counts: dict[str, int]) -> str:
    """Return row counts by table as a text: ``9 answers, 2 questions``."""
    return ", ".join(f"{rows:,} {table}" for table, rows in counts.items())
