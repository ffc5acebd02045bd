"""Asset checks: they follow every run and examine the rows of its window, fact by fact.

The SQL is in `quality.audits`. If a blocking check fails, so does the run, and an alert is sent.
Ranges, totals and keys are left to database constraints.

There is no `from __future__ import annotations` here: Dagster reads the annotation of a context.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta

from dagster import (
    AssetCheckExecutionContext,
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSeverity,
    AssetCheckSpec,
    AssetKey,
    MetadataValue,
    multi_asset_check,
)
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from mcq_analytics.definitions.partitions import as_window
from mcq_analytics.definitions.resources import DatabaseResource
from mcq_analytics.errors import McqError
from mcq_analytics.model.facts import FACTS, QUESTION_INTERACTION, TEST_FUNNEL, Fact
from mcq_analytics.model.windows import HOUR, Window, format_hour, last_closed_hour_end
from mcq_analytics.postgres.base_snapshot import snapshot_connection
from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.errors import explaining
from mcq_analytics.quality.audits import SAMPLE, Audits
from mcq_analytics.quality.verdicts import store_verdicts
from mcq_analytics.settings import Settings

RECOMPUTED = "rows_equal_a_recompute"
REFERENCES = "base_rows_have_their_counterparts"
FRESH = "fact_is_fresh"
FRESH_WITHIN = 2 * HOUR
"""The hour that just closed is computed at five past; one more hour may be late."""

REMEDY = (
    "the next tick of the schedule, or mcq-analytics run, computes these hours again; if they stay "
    "wrong, somebody edits the facts, or this is a bug: report these keys"
)
"""What to do if a blocking check fails."""

_KEYS_NAMED = 5
_KEY_WIDTH = 80


def _specs(fact: Fact) -> list[AssetCheckSpec]:
    def spec(name: str, description: str, *, blocking: bool) -> AssetCheckSpec:
        return AssetCheckSpec(
            name, asset=AssetKey(fact.name), description=description, blocking=blocking
        )

    specs = [
        spec(
            RECOMPUTED,
            f"Recomputes up to {SAMPLE} students' tests of the window in plain SQL, from their "
            "whole history, and compares them; and what spans students with what is stored of "
            "each. Rows whose base rows have changed since are only counted: the schedule or the "
            "late data sensor computes them again.",
            blocking=True,
        ),
        spec(
            FRESH,
            f"The fact is less than {FRESH_WITHIN // HOUR} hours behind the last closed hour.",
            blocking=False,
        ),
    ]
    if fact in (QUESTION_INTERACTION, TEST_FUNNEL):
        specs.append(
            spec(
                REFERENCES,
                "Every answer has a question and a session, and every submission an answer. Rows "
                "without them are computed all the same; many of them mean that the platform "
                "loses records.",
                blocking=False,
            )
        )
    return specs


def fact_checks(settings: Settings) -> AssetChecksDefinition:
    """Return the checks of the facts: one step, so that all of them run in one snapshot."""
    specs = {fact: _specs(fact) for fact in FACTS}
    blocking = {spec.key for of_fact in specs.values() for spec in of_fact if spec.blocking}

    @multi_asset_check(
        name="fact_checks",
        specs=[spec for of_fact in specs.values() for spec in of_fact],
        can_subset=True,
    )
    def checks(
        context: AssetCheckExecutionContext, database: DatabaseResource
    ) -> Iterator[AssetCheckResult]:
        window = _window(context, settings)
        if window is None:
            return
        opened = database.open()
        verdicts: dict[Fact, dict[str, str | None]] = {fact: {} for fact in FACTS}
        with (
            explaining(f"checking the facts over {window}", SQLAlchemyError),
            snapshot_connection(opened.engine(), opened.source_schema) as (connection, base),
        ):
            for fact, spec in ((one, spec) for one in FACTS for spec in specs[one]):
                if spec.key not in context.selected_asset_check_keys:
                    continue
                audits = Audits(fact, base, opened.fact_schema, window)
                result = _result(spec.name, audits, connection)
                if spec.key in blocking:
                    failure = f"the check {spec.name} failed ({result.description})"
                    verdicts[fact][spec.name] = None if result.passed else failure
                yield result
        with explaining("storing the verdicts on the facts", SQLAlchemyError):
            _store(opened, window, context.run.run_id, verdicts)
        wrong = [
            f"{fact.name} over {window}: {failure}"
            for fact, of_fact in verdicts.items()
            for failure in of_fact.values()
            if failure is not None
        ]
        if wrong:
            # Dagster would fail the step too, but its error names neither rows nor remedy.
            raise McqError(f"{'; '.join(wrong)}: {REMEDY}")

    return checks


def _store(
    database: Database,
    window: Window,
    run_id: str,
    verdicts: Mapping[Fact, Mapping[str, str | None]],
) -> None:
    with database.engine().begin() as connection:
        for fact, of_fact in verdicts.items():
            errors = {
                name: f"{failure}: {REMEDY}" if failure is not None else None
                for name, failure in of_fact.items()
            }
            store_verdicts(
                connection, database.fact_schema, fact, window, run_id=run_id, verdicts=errors
            )


def _window(context: AssetCheckExecutionContext, settings: Settings) -> Window | None:
    """Return the window of the run; without partitions, the lookback of the late data sensor."""
    if context.has_partition_key or context.has_partition_key_range:
        return as_window(context.partition_time_window)
    closed = last_closed_hour_end()
    start = max(settings.partition_start, closed - max(1, settings.lookback_hours) * HOUR)
    return Window(start, closed) if start < closed else None


def _result(name: str, audits: Audits, connection: Connection) -> AssetCheckResult:
    if name == FRESH:
        return _freshness(audits, connection)
    if name == RECOMPUTED:
        found = audits.recomputed(connection, seed=int(audits.window.start.timestamp()) // 3600)
        return _outcome(
            name,
            audits,
            passed=not found.wrong,
            counts={
                "student_tests_compared": found.sampled,
                "rows_wrong": len(found.wrong),
                "rows_awaiting_a_run": len(found.awaiting),
            },
            keys=found.wrong,
        )
    counts = audits.references(connection)
    return _outcome(
        name,
        audits,
        passed=not any(counts.values()),
        counts=counts,
        severity=AssetCheckSeverity.WARN,
    )


def _freshness(audits: Audits, connection: Connection) -> AssetCheckResult:
    until = audits.computed_until(connection)
    closed = last_closed_hour_end()
    lag: timedelta | None = closed - until if until is not None else None
    return _outcome(
        FRESH,
        audits,
        passed=lag is not None and lag < FRESH_WITHIN,
        counts={"lag_hours": lag // HOUR} if lag is not None else {},
        text=f"computed up to {format_hour(until)}" if until else "nothing is computed yet",
        severity=AssetCheckSeverity.WARN,
    )


def _outcome(
    name: str,
    audits: Audits,
    *,
    passed: bool,
    counts: Mapping[str, int],
    text: str | None = None,
    keys: Sequence[str] = (),
    severity: AssetCheckSeverity = AssetCheckSeverity.ERROR,
) -> AssetCheckResult:
    parts = [f"{what.replace('_', ' ')}: {count:,}" for what, count in counts.items()]
    if keys:
        parts.append(f"wrong: {', '.join(map(_in_short, keys[:_KEYS_NAMED]))}")
    return AssetCheckResult(
        check_name=name,
        asset_key=AssetKey(audits.fact.name),
        passed=passed,
        severity=severity,
        description=", ".join([*parts, text] if text else parts),
        metadata={
            **counts,
            "window_start": MetadataValue.timestamp(audits.window.start),
            "window_end": MetadataValue.timestamp(audits.window.end),
        },
    )


def _in_short(key: str) -> str:
    return key if len(key) <= _KEY_WIDTH else f"{key[:_KEY_WIDTH]}…"
