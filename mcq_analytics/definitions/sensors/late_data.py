"""The sensor that observes the base tables, and requests hours that are not what they were.

What is compared, and how much of it at a tick, is in `quality.comparisons`. Hours that never
succeeded, or failed, are the schedule's.
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
from mcq_analytics.settings import Settings, load_settings

NAME = "late_data_sensor"
SECONDS_BETWEEN_TICKS = 300
SESSION_SECONDS = 60
"""Dagster gives a tick a minute: no statement of it takes longer, and no session waits longer."""


def late_data_sensor(job_name: str) -> SensorDefinition:
    """Return the sensor of the facts' job: hours whose base rows have changed run again, once."""

    @sensor(
        name=NAME,
        job_name=job_name,
        minimum_interval_seconds=SECONDS_BETWEEN_TICKS,
        default_status=DefaultSensorStatus.RUNNING,
        description="Late, changed and deleted rows, expiries and answer keys: the hours that they "
        "concern are computed again.",
    )
    def late_data(
        context: SensorEvaluationContext, database: DatabaseResource
    ) -> SensorResult | SkipReason:
        settings = load_settings(database.environment)
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
            said = (
                f"{compared.failure} took longer than {PIECE_SECONDS} s to compare with the facts: "
                "mcq-analytics init-db names missing indexes"
            )
            # What is found is asked for all the same; else the tick fails, so that it is seen.
            if not found:
                cursor.keep(reached)
                raise McqError(said)
            context.log.warning("%s", said)
        cursor.forget()
        asked = {hour.start for request in found for hour in request.window.chunks(1)}
        return SensorResult(
            # Without a key: a change that comes back asks for the same run again.
            run_requests=[run_request(request, None) for request in found],
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
                if hour in asked
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
    for fact_name, known in hours_of_facts(engine, settings, FACTS_BY_NAME).items():
        found = {hour for hour in compared.hours[fact_name] if span.start <= hour < span.end}
        compared.hours[fact_name] = known.done(found)
    return compared


def _nothing_found(state: ComparisonState) -> str:
    if state.recent_down_to is not None or state.round is not None:
        return "Nothing found so far: the next tick goes on."
    return "All hours are what their facts were computed from."


def windows_to_compare(
    span: Window, settings: Settings, compared_until: datetime | None
) -> tuple[Window | None, Window | None]:
    """Return the lookback, and the next hours of the past before it, where there are such.

    The past is gone through again and again, `MCQ_AUDIT_HOURS` at a time.
    """
    begin = max(span.start, span.end - settings.lookback_hours * HOUR)
    recent = Window(begin, span.end) if begin < span.end else None
    if settings.audit_hours == 0 or begin <= span.start:
        return recent, None
    start = compared_until or span.start
    if not span.start <= start < begin:
        start = span.start
    return recent, Window(start, min(begin, start + settings.audit_hours * HOUR))
