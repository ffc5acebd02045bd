"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable

import click


def verbose_option(command: Callable[..., None]) -> Callable[..., None]:
    """Accept --verbose, also after the name of a command; the group looks for it on an error."""
    return click.option("--verbose", is_flag=True, expose_value=False, help="Show error traces.")(
        command
    )


def force_option(command: Callable[..., None]) -> Callable[..., None]:
    """Accept --force, without which a command does not write base rows in production."""
    return click.option("--force", is_flag=True, help="Write even if MCQ_ENV is prod.")(command)
