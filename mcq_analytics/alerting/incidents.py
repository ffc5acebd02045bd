"""When hours that fail become an incident, what is told of it, and when: pure decisions.

What failed is read, and what is told is sent, by `definitions.sensors.alerts`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from mcq_analytics.model.windows import HOUR, Window, format_hour, parse_time, ranges

LIVE, BACKFILL, CHECK = "live", "backfill", "check"
KINDS = (LIVE, BACKFILL, CHECK)
"""Runs that failed, in a backfill or not; and facts that a check found wrong."""
GROWS_WITHIN = timedelta(hours=6)
"""A failure joins the latest incident of its kind, unless that has not grown for so long."""
TRIALS_BEFORE_EMAIL = 3

_OPENED = {
    LIVE: "failed in hourly runs, on the final attempt",
    BACKFILL: "failed in a backfill, on the final attempt",
    CHECK: "is wrong: a check of its rows failed",
}
_RECOVERED = {
    LIVE: "all failed hours of the hourly runs are good",
    BACKFILL: "all failed hours of the backfill are good",
    CHECK: "its rows pass the checks again",
}
RANGES_NAMED = 5
CAUSES_NAMED = 5
LONGEST_ERROR = 1_000
"""Characters of an error in a message: Slack takes no message of more than 40,000."""

# An error begins with the fact and the window that it was met over. That is no part of the cause,
# and there is nothing but the text of an error in the records of a run.
_PLACE = re.compile(r"^\S+ over \[[^)]*\): ")

Hours = Mapping[str, AbstractSet[datetime]]


@dataclass(frozen=True)
class Failure:
    """What went wrong in a run; `text` is one line."""

    run_id: str
    text: str


@dataclass(frozen=True)
class FailedRun:
    """What the messages of an incident tell of a run: its error, in one line, and its hours.

    `by_hand` is a run that no schedule, sensor or backfill has asked for.
    """

    run_id: str
    text: str
    hours: Hours
    ended: datetime
    by_hand: bool = False


@dataclass(frozen=True)
class Seen:
    """What a tick sees, per fact: hours that failed for good, by kind; and unsettled hours.

    Unsettled are those in progress, those that will be tried again by themselves, and those whose
    run was cancelled or waited in vain: they are what they were. Any other hour is good.
    """

    failed: Mapping[str, Hours]
    unsettled: Hours


@dataclass(frozen=True)
class Incident:
    """Hours of facts that failed together, and when the last of them joined.

    `bad` are those of them that have not been good since they failed last.
    """

    kind: str
    hours: Mapping[str, frozenset[datetime]]
    grew_at: datetime
    bad: Mapping[str, frozenset[datetime]] = field(default_factory=dict)


@dataclass(frozen=True)
class FailingTicks:
    """Of a schedule or sensor: since when all its ticks fail, and the last error, in one line."""

    since: datetime
    error: str


@dataclass(frozen=True)
class Message:
    """A text that is to be sent, how many ticks could not send it, and how often it was refused."""

    text: str
    trials: int = 0
    refusals: int = 0


@dataclass(frozen=True)
class State:
    """What is remembered from tick to tick: open incidents, and messages not accepted yet.

    Slack is left alone before `not_before`. `failing` are the schedules and sensors whose ticks
    fail, as was told, and since when.
    """

    incidents: tuple[Incident, ...] = ()
    outbox: tuple[Message, ...] = ()
    not_before: datetime | None = None
    failing: Mapping[str, datetime] = field(default_factory=dict)

    def as_cursor(self) -> str:
        """Return the text that `from_cursor` reads; hours are written as ranges."""
        return json.dumps(
            {
                "incidents": [
                    {
                        "kind": incident.kind,
                        "grew_at": incident.grew_at.isoformat(),
                        "hours": _as_ranges(incident.hours),
                        "bad": _as_ranges(incident.bad),
                    }
                    for incident in self.incidents
                ],
                "outbox": [
                    [message.text, message.trials, message.refusals] for message in self.outbox
                ],
                "not_before": self.not_before.isoformat() if self.not_before else None,
                "failing": {name: since.isoformat() for name, since in self.failing.items()},
            }
        )

    @classmethod
    def from_cursor(cls, cursor: str | None) -> State:
        """Return the state that a cursor holds; none holds the empty one."""
        if not cursor:
            return cls()
        found = json.loads(cursor)
        return cls(
            tuple(
                Incident(
                    incident["kind"],
                    _from_ranges(incident["hours"]),
                    parse_time(incident["grew_at"]),
                    _from_ranges(incident.get("bad", incident["hours"])),
                )
                for incident in found["incidents"]
            ),
            tuple(Message(*message) for message in found["outbox"]),
            parse_time(found["not_before"]) if found["not_before"] else None,
            {name: parse_time(since) for name, since in found.get("failing", {}).items()},
        )


@dataclass(frozen=True)
class Change:
    """What a tick changes: incidents that open, and incidents that are over."""

    opened: tuple[Incident, ...] = field(default=())
    recovered: tuple[Incident, ...] = field(default=())


def decide(state: State, seen: Seen, now: datetime, after: int) -> tuple[State, Change]:
    """Return the incidents as they are now, and what is to be told.

    An incident opens when `after` consecutive hours of a fact have failed, and at once when a fact
    is wrong. It takes in such hours of every fact as they come, and is over when all its hours are
    good. An hour may be in an incident of runs and in one of checks.
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
                hours=_union(latest.hours, new),
                grew_at=now,
                bad=_union(latest.bad, new),
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
    """Return the state with a message for each schedule and sensor that begins or ceases to fail.

    One that does neither, since somebody has stopped it, is left as it was told.
    """
    for name, ticks in sorted(failing.items()):
        if name not in state.failing:
            state = with_message(state, _failing_text(name, ticks, webserver))
            state = replace(state, failing={**state.failing, name: ticks.since})
    for name, since in sorted(state.failing.items()):
        if name in good:
            still = {other: begun for other, begun in state.failing.items() if other != name}
            state = with_message(state, _ticking_text(name, since))
            state = replace(state, failing=still)
    return state


def with_message(state: State, text: str) -> State:
    """Return the state with a message that is to be sent after those that wait."""
    return replace(state, outbox=(*state.outbox, Message(text)))


def next_message(untried: Sequence[Message], *, last_refused: bool) -> Message:
    """Return which of the messages that a tick has not tried is to be tried next.

    They keep their order. After one that was refused it is the one that was refused least often:
    its fate shows whether the channel is down, or takes all but the one.
    """
    if not last_refused:
        return untried[0]
    return min(untried, key=lambda message: message.refusals)


def accepted(state: State, message: Message) -> State:
    """Return the state after a message was accepted: it is never sent again."""
    outbox = list(state.outbox)
    outbox.remove(message)
    return replace(state, outbox=tuple(outbox))


def refused(state: State, message: Message) -> State:
    """Return the state after a message was not accepted: a later tick tries again."""
    outbox = list(state.outbox)
    outbox[outbox.index(message)] = replace(message, refusals=message.refusals + 1)
    return replace(state, outbox=tuple(outbox))


def left_alone(state: State, now: datetime, retry_after: float) -> State:
    """Return the state after Slack asked to be left alone for some seconds: an hour at most."""
    wait = timedelta(seconds=min(retry_after, HOUR.total_seconds()))
    return replace(state, not_before=now + wait)


def without_wait_that_is_over(state: State, now: datetime) -> State:
    """Return the state without the time at which Slack may be asked again, once it has come."""
    over = state.not_before is not None and now >= state.not_before
    return replace(state, not_before=None) if over else state


def waited(state: State) -> State:
    """Return the state after a tick that could not send what is left."""
    outbox = (replace(message, trials=message.trials + 1) for message in state.outbox)
    return replace(state, outbox=tuple(outbox))


def opening_text(
    incident: Incident, runs: Iterable[FailedRun], webserver: str, older_runs: int = 0
) -> str:
    """Return what is sent when an incident opens: facts, hours, its causes, and links.

    `runs` are those that failed. Each error is told once, the latest first, by the latest run that
    it failed. `older_runs` is the number of those whose errors were not read.
    """
    return "\n".join(
        [
            f"{_facts(incident)} {_OPENED[incident.kind]}",
            *_lines(incident.hours),
            *_causes(incident, runs, webserver, older_runs),
            *(
                f"hours of {fact}: {webserver}/assets/{fact}?view=partitions"
                for fact in sorted(incident.hours)
            ),
        ]
    )


def recovery_text(incident: Incident) -> str:
    """Return what is sent when all hours of an incident are good."""
    return "\n".join(
        [
            f"{_facts(incident)} recovered: {_RECOVERED[incident.kind]}",
            *_lines(incident.hours),
        ]
    )


def _failing_text(name: str, ticks: FailingTicks, webserver: str) -> str:
    return "\n".join(
        [
            f"{name} does not work: its ticks fail",
            f"since: {format_hour(ticks.since)}",
            f"last error: {_cut(ticks.error)}",
            f"ticks: {webserver}/automation",
        ]
    )


def _ticking_text(name: str, since: datetime) -> str:
    return "\n".join(
        [
            f"{name} recovered: its latest tick succeeded",
            f"it had failed since: {format_hour(since)}",
        ]
    )


def _still_bad(incident: Incident, seen: Seen) -> dict[str, frozenset[datetime]]:
    """Return the hours of an incident that fail, and those that failed and are unsettled since."""
    bad = {}
    for fact, hours in incident.hours.items():
        failed = frozenset().union(*(by_fact.get(fact, ()) for by_fact in seen.failed.values()))
        unsettled = incident.bad.get(fact, frozenset()) & seen.unsettled.get(fact, frozenset())
        bad[fact] = (hours & failed) | unsettled
    return bad


def _new_hours(
    incidents: list[Incident], failed: Hours, after: int
) -> dict[str, frozenset[datetime]]:
    """Return per fact the failed hours of long enough rows that belong to no incident yet."""
    new = {}
    for fact, hours in failed.items():
        known = frozenset().union(*(incident.hours.get(fact, ()) for incident in incidents))
        together = (window for window in ranges(hours) if window.hours >= after)
        new[fact] = (
            frozenset(hour.start for window in together for hour in window.chunks(1)) - known
        )
    return {fact: hours for fact, hours in new.items() if hours}


def _as_ranges(by_fact: Hours) -> dict[str, list[list[str | int]]]:
    return {
        fact: [[window.start.isoformat(), window.hours] for window in ranges(hours)]
        for fact, hours in by_fact.items()
    }


def _from_ranges(found: Mapping[str, list[tuple[str, int]]]) -> dict[str, frozenset[datetime]]:
    return {
        fact: frozenset(
            parse_time(start) + index * HOUR for start, hours in windows for index in range(hours)
        )
        for fact, windows in found.items()
    }


def _union(one: Hours, other: Hours) -> dict[str, frozenset[datetime]]:
    facts = sorted({*one, *other})
    return {
        fact: frozenset(one.get(fact, frozenset())) | other.get(fact, frozenset()) for fact in facts
    }


def _facts(incident: Incident) -> str:
    return ", ".join(sorted(incident.hours))


def _causes(
    incident: Incident, runs: Iterable[FailedRun], webserver: str, older_runs: int
) -> list[str]:
    """Tell each cause with a link to its latest run; and with its hours where there are several."""
    causes: dict[str, list[FailedRun]] = {}
    for run in sorted(runs, key=lambda run: run.ended, reverse=True):
        causes.setdefault(_PLACE.sub("", run.text), []).append(run)
    lines = []
    for number, alike in enumerate(list(causes.values())[:CAUSES_NAMED]):
        latest = alike[0]
        lines += [
            f"{'last' if number == 0 else 'earlier'} error: {_cut(latest.text)}",
            f"run{' by hand' if latest.by_hand else ''}: {webserver}/runs/{latest.run_id}",
        ]
        if len(causes) > 1 or older_runs:
            hours: dict[str, frozenset[datetime]] = {}
            for run in alike:
                hours = _union(hours, run.hours)
            name_facts = len(incident.hours) > 1
            lines += [f"  its {line}" for line in _lines(hours, name_facts=name_facts)]
    more = [f"{len(causes) - CAUSES_NAMED} more errors"] if len(causes) > CAUSES_NAMED else []
    more += [f"those of {older_runs:,} older runs"] if older_runs else []
    return [*lines, *(f"and {one}" for one in more)]


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_ERROR else f"{text[:LONGEST_ERROR]}…"


def _lines(by_fact: Hours, *, name_facts: bool = False) -> list[str]:
    """Name the hours: once where they are the same for all facts."""
    by_hours: dict[frozenset[datetime], list[str]] = {}
    for fact, hours in sorted(by_fact.items()):
        by_hours.setdefault(frozenset(hours), []).append(fact)
    if len(by_hours) == 1 and not name_facts:
        return [f"hours: {_named(hours)}" for hours in by_hours]
    return [f"hours of {', '.join(facts)}: {_named(hours)}" for hours, facts in by_hours.items()]


def _named(hours: AbstractSet[datetime]) -> str:
    windows: list[Window] = ranges(hours)
    named = ", ".join(map(str, windows[:RANGES_NAMED]))
    more = f" and {len(windows) - RANGES_NAMED} more ranges" if len(windows) > RANGES_NAMED else ""
    return f"{named}{more} ({len(hours):,} in all)"
