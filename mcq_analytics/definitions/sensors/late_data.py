"""The late data sensor: it requests hours whose base rows have changed since they were computed.

`quality.comparisons` compares, and limits the work per tick. Missing and failed hours are left to
the schedule.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from dagster import (
    AssetKey,
    AssetObservation,
    DefaultSensorStatus,
    MetadataValue,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    sensor,
)
from sqlalchemy.exc import SQLAlchemyError

from mcq_analytics.definitions.open_hours import NONE_IS_OVER
from mcq_analytics.definitions.partitions import partition_key, run_request
from mcq_analytics.definitions.requests import requests
from mcq_analytics.definitions.resources import DatabaseResource
from mcq_analytics.definitions.run_state.in_progress import hours_in_progress
from mcq_analytics.definitions.sensors.kept_cursors import KeptCursor
from mcq_analytics.errors import McqError
from mcq_analytics.model.facts import FACTS_BY_NAME
from mcq_analytics.model.windows import HOUR, Window, hours_so_far
from mcq_analytics.postgres.base_snapshot import snapshot_connection
from mcq_analytics.postgres.errors import explaining
from mcq_analytics.postgres.hours import hours_of_facts
from mcq_analytics.quality.comparisons import PIECE_SECONDS, Comparison, ComparisonState
from mcq_analytics.settings import Settings

NAME = "late_data_sensor"
SECONDS_BETWEEN_TICKS = 300
SESSION_SECONDS = 60
"""Statement timeout: Dagster gives a tick a minute."""


def late_data_sensor(job_name: str, settings: Settings) -> SensorDefinition:
    """Return the sensor of the facts' job that runs changed hours again, once per change."""

    @sensor(
        name=NAME,
        job_name=job_name,
        minimum_interval_seconds=SECONDS_BETWEEN_TICKS,
        default_status=DefaultSensorStatus.RUNNING,
        description="Finds rows that arrived late, changed or were deleted, and new expiries and "
        "answer keys; computes the affected hours again.",
    )
    def late_data(
        context: SensorEvaluationContext, database: DatabaseResource
    ) -> SensorResult | SkipReason:
        span = hours_so_far(settings.partition_start)
        if span is None:
            return SkipReason(NONE_IS_OVER)
        cursor = KeptCursor.of(context, NAME)
        busy = hours_in_progress(context.instance)
        with explaining("comparing the base tables with the facts", SQLAlchemyError):
            compared = _compare(
                database, settings, span, ComparisonState.from_cursor(cursor.read())
            )
        found = requests(compared.hours, busy, settings.catch_up_hours)
        reached = compared.state.as_cursor()
        if compared.failure is not None:
            reason = (
                f"{compared.failure} took longer than {PIECE_SECONDS} s to compare with the facts: "
                "mcq-analytics init-db names missing indexes"
            )
            # With hours to request the tick must succeed; otherwise it fails, to be noticed.
            if not found:
                cursor.keep(reached)
                raise McqError(reason)
            context.log.warning("%s", reason)
        cursor.forget()
        requested = {hour for window in found for hour in window.starts()}
        return SensorResult(
            # Without a run key: the same change may happen again, and needs the same run again.
            run_requests=[run_request(window, None) for window in found],
            skip_reason=None if found else SkipReason(_nothing_found(compared.state)),
            cursor=reached,
            asset_events=[
                AssetObservation(
                    AssetKey(table),
                    partition=partition_key(hour),
                    tags={"dagster/data_version": fingerprint},
                    metadata={"rows": MetadataValue.int(int(fingerprint.split(":")[0]))},
                )
                for (hour, table), fingerprint in sorted(compared.changed.items())
                if hour in requested
            ],
        )

    return late_data


def _compare(
    resource: DatabaseResource, settings: Settings, span: Window, state: ComparisonState
) -> Comparison:
    """Compare the lookback, the next part of the past, and the answer key, in one snapshot."""
    database = replace(resource.open(), statement_seconds=SESSION_SECONDS)
    engine = database.engine()
    recent, past = windows_to_compare(span, settings, state.compared_until)
    with snapshot_connection(engine, database.source_schema) as (connection, base):
        compared = Comparison(connection, base, database.fact_schema, state)
        if recent is not None:
            compared.compare_recent(recent)
        if past is not None:
            compared.compare_past(past)
        compared.compare_answer_key()
    found = {hour for hour in compared.hours if span.start <= hour < span.end}
    for known in hours_of_facts(engine, settings, FACTS_BY_NAME).values():
        found = known.done(found)
    compared.hours = found
    return compared


def _nothing_found(state: ComparisonState) -> str:
    if state.recent_down_to is not None or state.round is not None:
        return "Nothing found so far; the next tick continues."
    return "No base row has changed since its hour was computed."


def windows_to_compare(
    span: Window, settings: Settings, compared_until: datetime | None
) -> tuple[Window | None, Window | None]:
    """Return the lookback, and the next part of the past before it; None if there is none.

    The past is compared over and over, `MCQ_AUDIT_HOURS` hours per tick.
    """
    begin = max(span.start, span.end - settings.lookback_hours * HOUR)
    recent = Window(begin, span.end) if begin < span.end else None
    if settings.audit_hours == 0 or begin <= span.start:
        return recent, None
    start = compared_until or span.start
    if not span.start <= start < begin:
        start = span.start
    return recent, Window(start, min(begin, start + settings.audit_hours * HOUR))
