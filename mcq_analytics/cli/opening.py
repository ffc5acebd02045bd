"""The shared start of commands: read the settings, open the database, inspect the base tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from mcq_analytics.errors import UsageError
from mcq_analytics.settings import load_settings

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from mcq_analytics.postgres.database import Database
    from mcq_analytics.postgres.inspection import BaseTables
    from mcq_analytics.settings import Settings

Result = TypeVar("Result")


def open_from_settings() -> tuple[Settings, Database]:
    """Read the settings and open their database."""
    from mcq_analytics.postgres.database import open_database  # noqa: PLC0415

    settings = load_settings()
    return settings, open_database(settings)


def open_to_fill(command: str, force: bool) -> tuple[Settings, Database]:
    """Open the database for a command that writes rows into the base tables.

    Raises:
        UsageError: the environment is `prod`, and the command is not forced.

    """
    from mcq_analytics.postgres.database import open_database  # noqa: PLC0415

    settings = load_settings()
    if settings.env == "prod" and not force:
        raise UsageError(
            f"{command} writes rows into the base tables, and MCQ_ENV is prod: set MCQ_ENV to dev "
            "or test, or give --force if production should have these rows"
        )
    return settings, open_database(settings)


def within(database: Database, doing: str, work: Callable[[Connection], Result]) -> Result:
    """Do some work in one transaction; `doing` explains it in error messages."""
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

    from mcq_analytics.postgres.errors import explaining  # noqa: PLC0415

    with explaining(doing, SQLAlchemyError), database.engine().begin() as connection:
        return work(connection)


def base_tables(database: Database) -> BaseTables:
    """Inspect the base tables.

    Raises:
        McqError: a table or column is missing or unusable.

    """
    from mcq_analytics.postgres.inspection import inspect_base_tables  # noqa: PLC0415

    return within(
        database,
        "reading the base tables",
        lambda connection: inspect_base_tables(connection, database.source_schema),
    )
