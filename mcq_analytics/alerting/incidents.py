"""When failures become an incident, and when it is over. Pure functions on `State`.

Each incident is announced once, and its recovery once. `definitions.sensors.alerts` reads the
failures and sends the messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from mcq_analytics.alerting.outbox import with_message
from mcq_analytics.alerting.state import ALL_FACTS, CHECK, KINDS, Hours, Incident, State
from mcq_analytics.alerting.texts import (
    FailingTicks,
    failing_ticks_text,
    merged,
    ticks_recovery_text,
)
from mcq_analytics.model.windows import ranges

GROWS_WITHIN = timedelta(hours=6)
"""New failures join the latest incident of their kind if it has grown within this time."""


@dataclass(frozen=True)
class Failure:
    """What went wrong in a run; `text` is one line."""

    run_id: str
    text: str


@dataclass(frozen=True)
class Seen:
    """The hours that a tick sees: failed for good, by kind; and unsettled.

    Unsettled hours are in progress, will be retried automatically, or had their run cancelled or
    give up waiting: they stay as they were. All other hours are good.
    """

    failed: Mapping[str, Hours]
    unsettled: AbstractSet[datetime]


@dataclass(frozen=True)
class Change:
    """The incidents that open at a tick, and those that are over."""

    opened: tuple[Incident, ...] = ()
    recovered: tuple[Incident, ...] = ()


def decide(state: State, seen: Seen, now: datetime, after: int) -> tuple[State, Change]:
    """Return the incidents as of now, and those to announce.

    An incident opens when `after` consecutive hours have failed, or when a check finds a fact
    wrong. Later hours join it; it is over when all of its hours are good. An hour can be in an
    incident of runs and in one of checks.
    """
    still: list[Incident] = []
    recovered: list[Incident] = []
    for before in state.incidents:
        incident = replace(before, bad=_still_bad(before, seen))
        if any(incident.bad.values()):
            still.append(incident)
        else:
            recovered.append(before)
    opened = []
    for kind in KINDS:
        alike = [incident for incident in still if (incident.kind == CHECK) == (kind == CHECK)]
        new = _new_hours(alike, seen.failed.get(kind, {}), 1 if kind == CHECK else after)
        if not any(new.values()):
            continue
        growing = [
            incident
            for incident in still
            if incident.kind == kind and now - incident.grew_at < GROWS_WITHIN
        ]
        if growing:
            latest = max(growing, key=lambda incident: incident.grew_at)
            still[still.index(latest)] = replace(
                latest,
                hours=merged(latest.hours, new),
                grew_at=now,
                bad=merged(latest.bad, new),
            )
        else:
            opened.append(Incident(kind, new, now, new))
    return (
        replace(state, incidents=(*still, *opened)),
        Change(tuple(opened), tuple(recovered)),
    )


def decide_ticks(
    state: State, failing: Mapping[str, FailingTicks], good: AbstractSet[str], webserver: str
) -> State:
    """Return the state with a message per schedule or sensor that begins or stops failing.

    One that somebody has stopped is in neither argument: nothing is said about it.
    """
    for name, ticks in sorted(failing.items()):
        if name not in state.failing:
            state = with_message(state, failing_ticks_text(name, ticks, webserver))
            state = replace(state, failing={**state.failing, name: ticks.since})
    for name, since in sorted(state.failing.items()):
        if name in good:
            still = {other: begun for other, begun in state.failing.items() if other != name}
            state = with_message(state, ticks_recovery_text(name, since))
            state = replace(state, failing=still)
    return state


def _still_bad(incident: Incident, seen: Seen) -> dict[str, frozenset[datetime]]:
    """Return the hours of an incident that fail now, or failed and have been unsettled since."""
    bad = {}
    for fact, hours in incident.hours.items():
        failed = frozenset().union(*(_of(fact, by_fact) for by_fact in seen.failed.values()))
        unsettled = incident.bad.get(fact, frozenset()) & seen.unsettled
        bad[fact] = (hours & failed) | unsettled
    return bad


def _of(fact: str, hours: Hours) -> frozenset[datetime]:
    """Return the hours of a fact, those of all facts among them; for all facts those of any."""
    return frozenset().union(
        *(some for name, some in hours.items() if ALL_FACTS in (fact, name) or name == fact)
    )


def _new_hours(
    incidents: Sequence[Incident], failed: Hours, after: int
) -> dict[str, frozenset[datetime]]:
    """Return, by fact, failed hours that are in no incident yet, of at least `after` in a row."""
    new = {}
    for fact, hours in failed.items():
        known = frozenset().union(*(incident.hours.get(fact, ()) for incident in incidents))
        together = (window for window in ranges(hours) if window.hours >= after)
        new[fact] = frozenset(hour for window in together for hour in window.starts()) - known
    return {fact: hours for fact, hours in new.items() if hours}
