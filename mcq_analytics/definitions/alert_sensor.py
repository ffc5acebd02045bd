"""The sensor that tells of incidents: it reads what failed, and sends what `incidents` decides."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import datetime, timezone

from dagster import (
    DagsterInstance,
    DefaultSensorStatus,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    sensor,
)
from sqlalchemy.exc import SQLAlchemyError

from mcq_analytics.alerts import AlertError, send_alert
from mcq_analytics.definitions.hour_outcomes import open_hours_of, wrong_hours
from mcq_analytics.definitions.liveness import end_dead_runs
from mcq_analytics.definitions.run_errors import error_of_run
from mcq_analytics.errors import McqError
from mcq_analytics.facts import FACTS
from mcq_analytics.incidents import (
    BACKFILL,
    CHECK,
    LIVE,
    TRIALS_BEFORE_EMAIL,
    Failure,
    Seen,
    State,
    accepted,
    decide,
    next_message,
    opening_text,
    recovery_text,
    refused,
    with_message,
)
from mcq_analytics.settings import AlertSettings, Settings, load_settings
from mcq_analytics.storage.database import open_database

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_TICKS = 30


def alert_sensor() -> SensorDefinition:
    """Return the sensor of incidents: one message when one opens, one when it is over.

    A tick sends at most one message, and notes it as sent once it was accepted.
    """

    @sensor(
        name="alert_sensor",
        minimum_interval_seconds=SECONDS_BETWEEN_TICKS,
        default_status=DefaultSensorStatus.RUNNING,
        description="Consecutive hours that failed on their final attempt: one alert for all of "
        "them, and one when they are good again.",
    )
    def alerts(context: SensorEvaluationContext) -> SensorResult:
        settings = load_settings()
        now = datetime.now(timezone.utc)
        state = _told(context.instance, State.from_cursor(context.cursor), settings, now)
        state, said = send_next(state, settings.alerts, now)
        return SensorResult(skip_reason=SkipReason(said), cursor=state.as_cursor())

    return alerts


def _told(instance: DagsterInstance, state: State, settings: Settings, now: datetime) -> State:
    """Return the state with what the instance shows now, and the messages about it."""
    end_dead_runs(instance)
    found = open_hours_of(instance)
    wrong = _wrong(instance, state, settings)
    failed = {
        LIVE: found.failed(in_backfill=False),
        BACKFILL: found.failed(in_backfill=True),
        CHECK: {fact: set(hours) for fact, hours in wrong.items()},
    }
    state, change = decide(state, Seen(failed, found.unsettled()), now, settings.alert_after)
    for incident in change.recovered:
        state = with_message(state, recovery_text(incident))
    for incident in change.opened:
        newest, fact = max((max(hours), fact) for fact, hours in incident.hours.items())
        if incident.kind == CHECK:
            failure = wrong[fact][newest]
        else:
            run_id = found.runs[fact][newest].run_id
            failure = Failure(run_id, error_of_run(instance, run_id))
        state = with_message(state, opening_text(incident, failure, settings.webserver_url))
    return state


def _wrong(
    instance: DagsterInstance, state: State, settings: Settings
) -> dict[str, dict[datetime, Failure]]:
    """Return the wrong hours; while the database is away, those that were told and not since."""
    try:
        return wrong_hours(instance, open_database(settings).engine(), settings)
    except (SQLAlchemyError, McqError):
        told: dict[str, dict[datetime, Failure]] = {fact.name: {} for fact in FACTS}
        for incident in state.incidents:
            for fact, hours in incident.hours.items() if incident.kind == CHECK else ():
                told[fact].update(dict.fromkeys(hours, Failure("", "the database is away")))
        return told


def send_next(state: State, alerts: AlertSettings, now: datetime) -> tuple[State, str]:
    """Send the next message, if one is due; return the state after it, and what was done.

    Where Slack has not accepted it for some ticks, it is sent by email if that is configured.
    """
    message = next_message(state, now)
    if message is None:
        return state, f"{len(state.incidents)} open incidents, nothing to tell."
    by_email = alerts.email_from and alerts.email_to and message.trials >= TRIALS_BEFORE_EMAIL
    try:
        send_alert(message.text, replace(alerts, method="email") if by_email else alerts)
    except AlertError as error:
        logger.warning("the alert was not accepted, the next tick tries again: %s", error)
        return refused(state, now, error.retry_after), f"Not accepted yet: {error}"
    return accepted(state), f"Told: {message.text.splitlines()[0]}"
