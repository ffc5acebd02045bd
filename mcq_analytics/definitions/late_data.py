"""The sensor that observes the base tables, and requests hours that are not what they were.

What an hour was computed from is in `storage.fingerprints`, the answer key in
`storage.corrections`. Hours that never succeeded, or failed, are the schedule's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
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
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from mcq_analytics.definitions.in_progress import hours_in_progress
from mcq_analytics.definitions.partitions import partition_key, run_request
from mcq_analytics.definitions.resources import DatabaseResource
from mcq_analytics.due import requests
from mcq_analytics.facts import FACTS, QUESTION_INTERACTION, TEST_SUMMARY
from mcq_analytics.settings import Settings, load_settings
from mcq_analytics.storage.base_snapshot import snapshot_connection
from mcq_analytics.storage.base_tables import BaseTables
from mcq_analytics.storage.corrections import Corrections
from mcq_analytics.storage.faults import explaining
from mcq_analytics.storage.fingerprints import stale_hours
from mcq_analytics.storage.metadata import fact_record
from mcq_analytics.windows import HOUR, Window, last_closed_hour_end, parse_hour

SECONDS_BETWEEN_TICKS = 300
STATEMENT_SECONDS = 45
"""Dagster gives a tick a minute; a statement that needs longer is to say so by itself."""


@dataclass(frozen=True)
class Progress:
    """What the sensor remembers between ticks.

    `answer_key` is the one that all rows agreed with; up to `compared_until` the past was compared
    in this round.
    """

    answer_key: str | None = None
    compared_until: datetime | None = None

    @classmethod
    def from_cursor(cls, cursor: str | None) -> Progress:
        """Return what a cursor says; an empty one says nothing."""
        found = json.loads(cursor) if cursor else {}
        until = found.get("compared_until")
        return cls(found.get("answer_key"), parse_hour(until) if until else None)

    def as_cursor(self) -> str:
        """Return the text that `from_cursor` reads."""
        until = self.compared_until.isoformat() if self.compared_until else None
        return json.dumps({"answer_key": self.answer_key, "compared_until": until})


@dataclass
class Findings:
    """Hours to compute again, by fact; and new fingerprints, by hour and base table."""

    hours: dict[str, set[datetime]]
    changed: dict[tuple[datetime, str], str]


def late_data_sensor(job_name: str) -> SensorDefinition:
    """Return the sensor of the facts' job: hours whose base rows have changed run again, once."""

    @sensor(
        name="late_data_sensor",
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
        closed = last_closed_hour_end()
        if closed <= settings.partition_start:
            return SkipReason("The first hour is not over yet.")
        span = Window(settings.partition_start, closed)
        busy = hours_in_progress(context.instance)
        with explaining("comparing the base tables with the facts", SQLAlchemyError):
            findings, progress = _observe(
                database, settings, span, Progress.from_cursor(context.cursor)
            )
        found = requests(findings.hours, busy, settings.catch_up_hours)
        asked = {hour.start for request in found for hour in request.window.chunks(1)}
        return SensorResult(
            # Without a key: a change that comes back asks for the same run again.
            run_requests=[run_request(request, None) for request in found],
            skip_reason=None
            if found
            else SkipReason("All hours are what their facts were computed from."),
            cursor=progress.as_cursor(),
            asset_events=[
                AssetObservation(
                    AssetKey(table),
                    partition=partition_key(hour),
                    tags={"dagster/data_version": fingerprint},
                    metadata={"rows": MetadataValue.int(int(fingerprint.split(":")[0]))},
                )
                for (hour, table), fingerprint in sorted(findings.changed.items())
                if hour in asked
            ],
        )

    return late_data


def _observe(
    resource: DatabaseResource, settings: Settings, span: Window, progress: Progress
) -> tuple[Findings, Progress]:
    """Compare the lookback, the next part of the past, and the answer key, in one snapshot."""
    database = replace(resource.open(), statement_seconds=STATEMENT_SECONDS)
    engine = database.engine()
    windows, until = windows_to_compare(span, settings, progress.compared_until)
    findings = Findings({fact.name: set() for fact in FACTS}, {})
    with snapshot_connection(engine, database.source_schema) as (connection, base):
        for fact in FACTS:
            for window in windows:
                stale = stale_hours(connection, base, database.fact_schema, fact, window)
                findings.hours[fact.name] |= set(stale)
                findings.changed.update(
                    ((hour, table), fingerprint)
                    for hour, tables in stale.items()
                    for table, fingerprint in tables.items()
                )
        key, wrong = _wrong_rows(connection, base, database.fact_schema, progress.answer_key)
    for fact in (QUESTION_INTERACTION, TEST_SUMMARY):
        findings.hours[fact.name] |= wrong
    for fact in FACTS:
        known = fact_record(engine, fact.name, settings).hours
        findings.hours[fact.name] &= {hour for hour, record in known.items() if record.is_done}
        findings.hours[fact.name] = {
            hour for hour in findings.hours[fact.name] if span.start <= hour < span.end
        }
    return findings, Progress(key, until)


def _wrong_rows(
    connection: Connection, base: BaseTables, schema: str, known: str | None
) -> tuple[str | None, set[datetime]]:
    """Return the answer key that all rows agree with, if they do, and hours of those that do not.

    The fact is not looked at while the answer key is the one that it agreed with.
    """
    corrections = Corrections(base, schema)
    key = corrections.answer_key(connection)
    if key == known:
        return key, set()
    wrong = corrections.hours_of_wrong_rows(connection)
    return (None if wrong else key), wrong


def windows_to_compare(
    span: Window, settings: Settings, compared_until: datetime | None
) -> tuple[list[Window], datetime | None]:
    """Return the lookback and the next hours of the past before it, and where these end.

    The past is gone through again and again, `MCQ_AUDIT_HOURS` at a time.
    """
    recent = max(span.start, span.end - settings.lookback_hours * HOUR)
    windows = [Window(recent, span.end)] if recent < span.end else []
    if settings.audit_hours == 0 or recent <= span.start:
        return windows, None
    start = compared_until or span.start
    if not span.start <= start < recent:
        start = span.start
    end = min(recent, start + settings.audit_hours * HOUR)
    return [Window(start, end), *windows], end
