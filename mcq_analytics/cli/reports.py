"""Commands that report on the facts: `status`, and `rescore`, which also corrects them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import click

from mcq_analytics.cli.opening import open_from_settings
from mcq_analytics.cli.options import verbose_option
from mcq_analytics.cli.output import show_table
from mcq_analytics.model.windows import HOUR, format_hour
from mcq_analytics.progress import progress_bar

if TYPE_CHECKING:
    from mcq_analytics.quality.status import FactStatus


@click.command()
@verbose_option
def status() -> None:
    """Show done, missing and failed hours per fact. Exit with 1 if any hour has failed."""
    from mcq_analytics.quality.status import fact_statuses  # noqa: PLC0415

    settings, database = open_from_settings()

    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

    from mcq_analytics.definitions.run_state import hour_outcomes  # noqa: PLC0415
    from mcq_analytics.definitions.run_state.liveness import end_dead_runs  # noqa: PLC0415
    from mcq_analytics.launching import in_process  # noqa: PLC0415
    from mcq_analytics.postgres.errors import explaining  # noqa: PLC0415

    with (
        explaining("reading the status", SQLAlchemyError),
        in_process.dagster_instance(settings) as instance,
    ):
        end_dead_runs(instance, settings)
        engine = database.engine()
        hour_outcomes.record_ended_runs(instance, settings, engine)
        wrong = hour_outcomes.wrong_hours(instance, engine, settings)
    statuses = fact_statuses(database, settings, wrong)
    show_table(
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
    for line in _failures(failed):
        click.echo(line, err=True)
    if failed:
        sys.exit(1)


def _failures(failed: Iterable[FactStatus]) -> Iterator[str]:
    """Yield a line for each cause, with the facts that it concerns: up to `CAUSES_NAMED`."""
    from mcq_analytics.model.facts import FACTS  # noqa: PLC0415
    from mcq_analytics.quality.status import CAUSES_NAMED, named_causes  # noqa: PLC0415

    for verb, plural, by_fact in (
        ("failed", "failed", {fact.name: fact.failed for fact in failed}),
        ("is wrong", "are wrong", {fact.name: fact.wrong for fact in failed}),
    ):
        causes = named_causes(by_fact)
        for facts, cause in causes[:CAUSES_NAMED]:
            named = "the facts" if len(facts) == len(FACTS) else ", ".join(facts)
            yield f"{named} {verb if len(facts) == 1 else plural} over {cause}"
        if len(causes) > CAUSES_NAMED:
            yield f"hours {plural} for {len(causes) - CAUSES_NAMED} more reasons"


@click.command()
@click.option("--question", default=None, help="Only this question_id [default: all questions].")
@click.option("--dry-run", is_flag=True, help="Report what would change without computing it.")
@verbose_option
def rescore(question: str | None, dry_run: bool) -> None:
    """Recompute every hour that differs from the base tables, and report which results change.

    Such are hours with corrected answer keys, expiry times, or late answers. The late data sensor
    does this on its own within hours.
    """
    from mcq_analytics.quality.rescore import find_rescore  # noqa: PLC0415

    settings, database = open_from_settings()
    with progress_bar("comparing hours") as advance:
        found = find_rescore(database, settings, question, lambda hours: advance(hours, ""))
    if not found.windows:
        click.echo("nothing to do: the facts match the base tables")
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
    verb = "would change" if dry_run else "changed"
    click.echo(f"{found.stale_hours:,} hours differ from the base tables")
    click.echo(f"{verb} {moves.rows:,} question results of {moves.students:,} students")
    if moves.before is not None and moves.after is not None:
        click.echo(
            f"their mean accuracy: {moves.before:.2f} % before, {moves.after:.2f} % after, "
            f"{moves.after - moves.before:+.2f} percentage points"
        )
