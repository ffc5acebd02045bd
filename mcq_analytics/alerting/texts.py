"""The texts of alerts: what an incident's opening and recovery say. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime

from mcq_analytics.alerting.state import ALL_FACTS, BACKFILL, CHECK, LIVE, Hours, Incident
from mcq_analytics.model.facts import FACTS
from mcq_analytics.model.windows import format_hour, ranges

RANGES_NAMED = 5
CAUSES_NAMED = 5
LONGEST_ERROR = 1_000
"""Characters of an error in a message: Slack accepts no message of more than 40,000."""

_OPENED = {
    LIVE: "failed in hourly runs, on the final attempt",
    BACKFILL: "failed in a backfill, on the final attempt",
    CHECK: "is wrong: a check of its rows failed",
}
_RECOVERED = {
    LIVE: "all failed hours of the hourly runs are good",
    BACKFILL: "all failed hours of the backfill are good",
    CHECK: "the rows pass the checks again",
}
_SEVERAL_ARE_WRONG = "are wrong: checks of their rows failed"

# Errors begin with the fact and window they occurred in, which are not part of the cause. Dagster
# keeps only the text of an error, so a pattern has to take them off.
_PLACE = re.compile(rf"^(?:{ALL_FACTS}|\S+) over \[[^)]*\): ")


@dataclass(frozen=True)
class FailedRun:
    """A run as messages report it: its error in one line, its hours, and when it ended.

    `by_hand` is a run that no schedule, sensor or backfill requested.
    """

    run_id: str
    text: str
    hours: Hours
    ended: datetime
    by_hand: bool = False


@dataclass(frozen=True)
class FailingTicks:
    """A schedule or sensor whose ticks fail: since when, and the last error, in one line."""

    since: datetime
    error: str


def opening_text(
    incident: Incident, runs: Iterable[FailedRun], webserver: str, older_runs: int = 0
) -> str:
    """Return the message that opens an incident: facts, hours, causes, and links.

    `runs` are the failed ones. Each error appears once, latest first, with the latest run that
    failed with it. `older_runs` counts the runs whose errors were not read.
    """
    return "\n".join(
        [
            f"{_facts(incident)} {_opened(incident)}",
            *_lines(incident.hours),
            *_causes(incident, runs, webserver, older_runs),
            *(
                f"hours of {fact}: {webserver}/assets/{_asset(fact)}?view=partitions"
                for fact in sorted(incident.hours)
            ),
        ]
    )


def recovery_text(incident: Incident) -> str:
    """Return the message that closes an incident: all of its hours are good."""
    return "\n".join(
        [
            f"{_facts(incident)} recovered: {_RECOVERED[incident.kind]}",
            *_lines(incident.hours),
        ]
    )


def failing_ticks_text(name: str, ticks: FailingTicks, webserver: str) -> str:
    """Return the message about a schedule or sensor whose ticks fail."""
    return "\n".join(
        [
            f"{name} does not work: its ticks fail",
            f"since: {format_hour(ticks.since)}",
            f"last error: {_cut(ticks.error)}",
            f"ticks: {webserver}/automation",
        ]
    )


def ticks_recovery_text(name: str, since: datetime) -> str:
    """Return the message about a schedule or sensor whose ticks succeed again."""
    return "\n".join(
        [
            f"{name} recovered: its latest tick succeeded",
            f"failing since: {format_hour(since)}",
        ]
    )


def merged(one: Hours, other: Hours) -> dict[str, frozenset[datetime]]:
    """Return the hours of both, by fact."""
    facts = sorted({*one, *other})
    return {
        fact: frozenset(one.get(fact, frozenset())) | other.get(fact, frozenset()) for fact in facts
    }


def _facts(incident: Incident) -> str:
    return ", ".join(sorted(incident.hours))


def _opened(incident: Incident) -> str:
    return _SEVERAL_ARE_WRONG if len(incident.hours) > 1 else _OPENED[incident.kind]


def _asset(fact: str) -> str:
    """Return the asset with the hours of a fact; for all facts the one that is recorded last."""
    return FACTS[-1].name if fact == ALL_FACTS else fact


def _causes(
    incident: Incident, runs: Iterable[FailedRun], webserver: str, older_runs: int
) -> list[str]:
    """Return each cause with a link to its latest run; with its hours if there are several."""
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
                hours = merged(hours, run.hours)
            name_facts = len(incident.hours) > 1
            lines += [f"  its {line}" for line in _lines(hours, name_facts=name_facts)]
    more = [f"{len(causes) - CAUSES_NAMED} more errors"] if len(causes) > CAUSES_NAMED else []
    more += [f"those of {older_runs:,} older runs"] if older_runs else []
    return [*lines, *(f"and {one}" for one in more)]


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_ERROR else f"{text[:LONGEST_ERROR]}…"


def _lines(by_fact: Hours, *, name_facts: bool = False) -> list[str]:
    """Return a line per set of hours: a single one if all facts have the same hours."""
    by_hours: dict[frozenset[datetime], list[str]] = {}
    for fact, hours in sorted(by_fact.items()):
        by_hours.setdefault(frozenset(hours), []).append(fact)
    if len(by_hours) == 1 and not name_facts:
        return [f"hours: {_named(hours)}" for hours in by_hours]
    return [f"hours of {', '.join(facts)}: {_named(hours)}" for hours, facts in by_hours.items()]


def _named(hours: AbstractSet[datetime]) -> str:
    windows = ranges(hours)
    named = ", ".join(map(str, windows[:RANGES_NAMED]))
    more = f" and {len(windows) - RANGES_NAMED} more ranges" if len(windows) > RANGES_NAMED else ""
    return f"{named}{more} ({len(hours):,} in all)"
