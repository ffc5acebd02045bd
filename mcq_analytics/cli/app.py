"""The `mcq-analytics` group: its commands, and how errors are shown. No command is defined here."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from mcq_analytics.cli.alerts import alert_test
from mcq_analytics.cli.database import generate, init_db, load_csv
from mcq_analytics.cli.demo import demo
from mcq_analytics.cli.doctor import doctor
from mcq_analytics.cli.environment import package_environment
from mcq_analytics.cli.options import verbose_option
from mcq_analytics.cli.reports import rescore, status
from mcq_analytics.cli.runs import backfill, run
from mcq_analytics.cli.server import spark_server
from mcq_analytics.errors import UsageError
from mcq_analytics.masking import mask


class Commands(click.Group):
    """A group that shows an error as one line on stderr, and its trace only with --verbose."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        """Run a command and exit: with 0 on success, else with 1, or 2 for a usage error."""
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


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mcq_analytics")
@verbose_option
def main() -> None:
    """Exact, hourly analytics of multiple-choice tests."""


for _command in (
    init_db,
    load_csv,
    generate,
    run,
    backfill,
    status,
    rescore,
    alert_test,
    doctor,
    spark_server,
    package_environment,
    demo,
):
    main.add_command(_command)
