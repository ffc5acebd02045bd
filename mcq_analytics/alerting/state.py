"""What the alert sensor remembers between ticks: incidents, waiting messages, failing ticks.

It is kept in the sensor's cursor. How it changes is in `incidents` and `outbox`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import datetime

from mcq_analytics.model.windows import HOUR, parse_time, ranges

LIVE, BACKFILL, CHECK = "live", "backfill", "check"
KINDS = (LIVE, BACKFILL, CHECK)
"""Kinds of incidents: failed hourly runs, failed backfill runs, and facts that a check found
wrong."""

ALL_FACTS = "the facts"
"""Stands for all facts in `Hours`: a run fails for all of them, a check finds one of them wrong."""

Hours = Mapping[str, AbstractSet[datetime]]
"""Hours by fact, or those of `ALL_FACTS`."""


@dataclass(frozen=True)
class Incident:
    """Hours of facts that failed together; `grew_at` is when the last of them joined.

    `bad` are the hours that have not been good since they last failed.
    """

    kind: str
    hours: Mapping[str, frozenset[datetime]]
    grew_at: datetime
    bad: Mapping[str, frozenset[datetime]] = field(default_factory=dict)


@dataclass(frozen=True)
class Message:
    """A text to send: how many ticks could not send it, and how often it was refused."""

    text: str
    trials: int = 0
    refusals: int = 0


@dataclass(frozen=True)
class State:
    """Open incidents, and messages that have not been accepted yet, oldest first.

    Slack is not tried before `not_before`. `failing` are the schedules and sensors whose failing
    ticks were reported, and since when they fail.
    """

    incidents: tuple[Incident, ...] = ()
    outbox: tuple[Message, ...] = ()
    not_before: datetime | None = None
    failing: Mapping[str, datetime] = field(default_factory=dict)

    def as_cursor(self) -> str:
        """Return the state as text, hours as ranges."""
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
        """Return the state that `as_cursor` wrote; an empty one without a cursor."""
        if not cursor:
            return cls()
        found = json.loads(cursor)
        return cls(
            tuple(
                Incident(
                    incident["kind"],
                    _of_kind(incident["kind"], _from_ranges(incident["hours"])),
                    parse_time(incident["grew_at"]),
                    _of_kind(
                        incident["kind"], _from_ranges(incident.get("bad", incident["hours"]))
                    ),
                )
                for incident in found["incidents"]
            ),
            tuple(Message(*message) for message in found["outbox"]),
            parse_time(found["not_before"]) if found["not_before"] else None,
            {name: parse_time(since) for name, since in found.get("failing", {}).items()},
        )


def _of_kind(
    kind: str, hours: Mapping[str, frozenset[datetime]]
) -> Mapping[str, frozenset[datetime]]:
    """Return hours as incidents of a kind have them: an older version kept failed runs by fact."""
    return hours if kind == CHECK else {ALL_FACTS: frozenset().union(*hours.values())}


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
