"""The alert sensor: it reads failures, and sends the messages that `alerting` decides on."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone

from dagster import (
    DagsterInstance,
    DefaultSensorStatus,
    RunRecord,
    RunsFilter,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    sensor,
)
from sqlalchemy.exc import SQLAlchemyError

from mcq_analytics.alerting.incidents import Failure, Seen, decide, decide_ticks
from mcq_analytics.alerting.outbox import (
    TRIALS_BEFORE_EMAIL,
    accepted,
    after_tick,
    next_message,
    paused,
    refused,
    with_message,
    without_expired_pause,
)
from mcq_analytics.alerting.send import AlertError, send_alert
from mcq_analytics.alerting.state import ALL_FACTS, BACKFILL, CHECK, LIVE, Incident, Message, State
from mcq_analytics.alerting.texts import FailedRun, opening_text, recovery_text
from mcq_analytics.definitions.run_state.failing_ticks import failing_ticks
from mcq_analytics.definitions.run_state.hour_outcomes import unfinished_hours, wrong_hours
from mcq_analytics.definitions.run_state.in_progress import BACKFILL_TAG
from mcq_analytics.definitions.run_state.liveness import end_dead_runs
from mcq_analytics.definitions.run_state.run_errors import error_of_run
from mcq_analytics.definitions.sensors.kept_cursors import KeptCursor
from mcq_analytics.errors import McqError
from mcq_analytics.model.facts import FACTS
from mcq_analytics.postgres.database import open_database
from mcq_analytics.settings import AlertSettings, Settings

logger = logging.getLogger(__name__)

NAME = "alert_sensor"
SECONDS_BETWEEN_TICKS = 30
SECONDS_TO_SEND = 20
"""Dagster gives a tick a minute, and one message may take ten seconds."""
REFUSALS_IN_A_ROW = 2
"""After this many refusals a channel is taken to be down. It may refuse a single message for its
content."""
SLACK = "slack"
RUNS_READ = 50
"""The latest runs of a new incident whose errors are read, with a query each."""

_REQUESTED_BY = ("dagster/schedule_name", "dagster/sensor_name", BACKFILL_TAG)


@dataclass(frozen=True)
class Sent:
    """The first lines of the messages that a tick sent, and why channels refused others."""

    titles: tuple[str, ...]
    refusals: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"Sent: {'; '.join(self.titles)}"] if self.titles else []
        return ". ".join([*parts, *(f"Not accepted: {reason}" for reason in self.refusals)])


def alert_sensor(settings: Settings, watched: Collection[str]) -> SensorDefinition:
    """Return the sensor: one message when an incident opens, and one when it is over.

    `watched` are the schedules and sensors whose failing ticks are reported too. A message counts
    as sent once it was accepted. A tick that leaves messages unsent fails, with the reason.
    """

    @sensor(
        name=NAME,
        minimum_interval_seconds=SECONDS_BETWEEN_TICKS,
        default_status=DefaultSensorStatus.RUNNING,
        description="Sends one alert when consecutive hours have failed on their final attempt, or "
        "a fact is wrong, and one when all is good again.",
    )
    def alerts(context: SensorEvaluationContext) -> SensorResult:
        now = datetime.now(timezone.utc)
        cursor = KeptCursor.of(context, NAME)

        def keep(state: State) -> None:
            cursor.keep(state.as_cursor())

        state = State.from_cursor(cursor.read())
        try:
            state = _updated(context.instance, state, settings, now)
            failing, good = failing_ticks(context.instance, watched)
            state = decide_ticks(state, failing, good, settings.webserver_url)
            keep(state)
        finally:
            # Waiting messages are sent even if the records cannot be read.
            state, sent = send_waiting(state, settings.alerts, now, keep)
            keep(state)
        if state.outbox and sent.refusals:
            raise AlertError(f"Waiting: {len(state.outbox)}. {sent}")
        nothing = f"{len(state.incidents) + len(state.failing)} open incidents, nothing to send."
        return SensorResult(skip_reason=SkipReason(str(sent) or nothing), cursor=state.as_cursor())

    return alerts


def _updated(instance: DagsterInstance, state: State, settings: Settings, now: datetime) -> State:
    """Return the state after looking at the instance, with messages about what changed."""
    end_dead_runs(instance, settings)
    found = unfinished_hours(instance)
    wrong = _wrong(instance, state, settings)
    failed = {
        LIVE: {ALL_FACTS: found.failed(in_backfill=False)},
        BACKFILL: {ALL_FACTS: found.failed(in_backfill=True)},
        CHECK: {fact: set(hours) for fact, hours in wrong.items()},
    }
    state, change = decide(state, Seen(failed, found.unsettled()), now, settings.alert_after)
    for incident in change.recovered:
        state = with_message(state, recovery_text(incident))
    for incident in change.opened:
        run_ids = {hour: run.run_id for hour, run in found.runs.items()}
        known = wrong if incident.kind == CHECK else {ALL_FACTS: run_ids}
        runs, older = _failed_runs(instance, incident, known)
        state = with_message(state, opening_text(incident, runs, settings.webserver_url, older))
    return state


def _wrong(
    instance: DagsterInstance, state: State, settings: Settings
) -> dict[str, dict[datetime, Failure]]:
    """Return the wrong hours; while the database is away, those of the last tick."""
    try:
        return wrong_hours(instance, open_database(settings).engine(), settings)
    except (SQLAlchemyError, McqError):
        reported: dict[str, dict[datetime, Failure]] = {fact.name: {} for fact in FACTS}
        for incident in state.incidents:
            for fact, hours in incident.bad.items() if incident.kind == CHECK else ():
                reported[fact].update(dict.fromkeys(hours, Failure("", "the database is away")))
        return reported


def _failed_runs(
    instance: DagsterInstance,
    incident: Incident,
    known: Mapping[str, Mapping[datetime, Failure | str]],
) -> tuple[list[FailedRun], int]:
    """Return the latest runs of an incident with their errors, and the number of older runs.

    `known` is, by fact and hour, the failure of a check or the id of the failed run.
    """
    hours: dict[Failure | str, dict[str, set[datetime]]] = {}
    for fact, bad in incident.hours.items():
        for hour in bad:
            hours.setdefault(known[fact][hour], {}).setdefault(fact, set()).add(hour)
    run_ids = {one.run_id if isinstance(one, Failure) else one for one in hours}
    records = {
        record.dagster_run.run_id: record
        for record in instance.get_run_records(RunsFilter(run_ids=sorted(run_ids)))
    }
    latest = sorted(records, key=lambda run_id: _ended(records[run_id]), reverse=True)[:RUNS_READ]
    runs = []
    for one, of_facts in hours.items():
        run_id = one.run_id if isinstance(one, Failure) else one
        if run_id in latest:
            text = one.text if isinstance(one, Failure) else error_of_run(instance, run_id)
            record = records[run_id]
            by_hand = not any(tag in record.dagster_run.tags for tag in _REQUESTED_BY)
            runs.append(FailedRun(run_id, text, of_facts, _ended(record), by_hand))
    return runs, len(run_ids) - len(latest)


def _ended(record: RunRecord) -> datetime:
    seconds = record.end_time or record.update_timestamp.replace(tzinfo=timezone.utc).timestamp()
    return datetime.fromtimestamp(seconds, timezone.utc)


def send_waiting(
    state: State, alerts: AlertSettings, now: datetime, keep: Callable[[State], None]
) -> tuple[State, Sent]:
    """Send waiting messages, within a tick's time; return the new state, and what was sent.

    Slack comes first. Messages that it did not accept for some ticks go by email, if that is
    configured. `keep` is called with the state after each accepted message.
    """
    delivery = _Delivery(state, now, keep)
    delivery.send(state.outbox, alerts)
    if alerts.method == SLACK and alerts.email_from and alerts.email_to:
        waiting = delivery.state.outbox
        late = [message for message in waiting if message.trials >= TRIALS_BEFORE_EMAIL]
        delivery.send(late, replace(alerts, method="email"))
    state = after_tick(delivery.state) if delivery.refusals else delivery.state
    return state, Sent(tuple(delivery.titles), tuple(delivery.refusals))


class _Delivery:
    """The sending of one tick: it ends after `SECONDS_TO_SEND`, but tries each channel once."""

    def __init__(self, state: State, now: datetime, keep: Callable[[State], None]) -> None:
        self.state = state
        self.titles: list[str] = []
        self.refusals: list[str] = []
        self._now = now
        self._keep = keep
        self._until = time.monotonic() + SECONDS_TO_SEND

    def send(self, messages: Iterable[Message], channel: AlertSettings) -> None:
        """Send messages by a channel, until it refuses two in a row or asks for a pause."""
        untried = list(messages)
        if channel.method == SLACK and untried:
            self.state = without_expired_pause(self.state, self._now)
            if self.state.not_before is not None:
                self._note(f"Slack asked for a pause until {self.state.not_before:%H:%M:%SZ}")
                return
        in_a_row = 0
        while untried and in_a_row < REFUSALS_IN_A_ROW:
            message = next_message(untried, last_refused=in_a_row > 0)
            untried.remove(message)
            try:
                send_alert(message.text, channel)
            except AlertError as error:
                self._note(str(error))
                if error.retry_after:
                    self.state = paused(self.state, self._now, error.retry_after)
                    return
                self.state = refused(self.state, message)
                in_a_row += 1
            else:
                self.state = accepted(self.state, message)
                self._keep(self.state)
                self.titles.append(message.text.splitlines()[0])
                in_a_row = 0
            if time.monotonic() >= self._until:
                return

    def _note(self, refusal: str) -> None:
        logger.warning("an alert was not accepted, the next tick will retry: %s", refusal)
        if refusal not in self.refusals:
            self.refusals.append(refusal)
