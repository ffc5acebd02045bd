"""How up to date each fact is: hours done, missing and failed, for `mcq-analytics status`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from mcq_analytics.alerting.incidents import Failure
from mcq_analytics.model.facts import FACTS_BY_NAME
from mcq_analytics.model.windows import (
    HOUR,
    Window,
    format_hour,
    hours_so_far,
    last_closed_hour_end,
    ranges,
)
from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.errors import explaining
from mcq_analytics.postgres.hours import FactHours, hours_of_facts
from mcq_analytics.postgres.identifiers import quoted
from mcq_analytics.settings import Settings

CAUSES_NAMED = 5
RANGES_NAMED = 3


@dataclass(frozen=True)
class Cause:
    """Hours that failed with the same error, and when they last did. `text` is one line."""

    text: str
    hours: tuple[datetime, ...]
    last_at: datetime | None = None

    def __str__(self) -> str:
        """Return the hours and the error in one line."""
        named = ranges(self.hours)
        more = f" and {len(named) - RANGES_NAMED} more ranges" if len(named) > RANGES_NAMED else ""
        when = f", last at {format_hour(self.last_at)}" if self.last_at is not None else ""
        return f"{', '.join(map(str, named[:RANGES_NAMED]))}{more}{when}: {self.text}"


@dataclass(frozen=True)
class FactStatus:
    """How far a fact is. `done_until` is the end of its latest hour that succeeded.

    Missing hours are counted from the first partition to the last closed hour; the lag is the time
    from `done_until` to there. `failed` are the hours that failed and `wrong` those over which a
    check found the fact wrong, by cause, latest first.
    """

    name: str
    done_until: datetime | None
    missing_hours: int
    failed: tuple[Cause, ...]
    wrong: tuple[Cause, ...]
    lag_hours: int
    rows: int

    @property
    def failed_hours(self) -> int:
        """Number of hours that failed or are wrong."""
        return len({hour for cause in (*self.failed, *self.wrong) for hour in cause.hours})


def named_causes(by_fact: Mapping[str, Iterable[Cause]]) -> list[tuple[tuple[str, ...], Cause]]:
    """Return each cause once, the latest first, with the names of the facts that it concerns."""
    facts: dict[tuple[str, tuple[datetime, ...]], list[str]] = {}
    latest: dict[tuple[str, tuple[datetime, ...]], Cause] = {}
    for name, causes in by_fact.items():
        for cause in causes:
            key = (cause.text, cause.hours)
            facts.setdefault(key, []).append(name)
            latest[key] = max(latest.get(key, cause), cause, key=_recency)
    found = sorted(latest.items(), key=lambda item: _recency(item[1]), reverse=True)
    return [(tuple(facts[key]), cause) for key, cause in found]


def fact_statuses(
    database: Database, settings: Settings, wrong: Mapping[str, Mapping[datetime, Failure]]
) -> list[FactStatus]:
    """Return the status of every fact. `wrong` has the hours, by fact, that a check found wrong.

    Raises:
        McqError: the database cannot be read, or `init-db` has not been run.

    """
    engine = database.engine()
    with explaining("reading the status", SQLAlchemyError):
        hours = hours_of_facts(engine, settings, FACTS_BY_NAME)
        with engine.connect() as connection:
            rows = {
                name: connection.execute(
                    text(f"SELECT count(*) FROM {quoted(settings.fact_schema, name)}")
                ).scalar_one()
                for name in FACTS_BY_NAME
            }
    return [
        _status(name, hours[name], wrong[name], rows[name], settings.partition_start)
        for name in FACTS_BY_NAME
    ]


def _status(
    name: str,
    hours: FactHours,
    wrong: Mapping[datetime, Failure],
    rows: int,
    first: datetime,
) -> FactStatus:
    span = hours_so_far(first)
    known = [one for one in hours.ranges if not one.is_missing]
    done_until = max((one.hours.end for one in known if one.has_succeeded), default=None)
    return FactStatus(
        name=name,
        done_until=done_until,
        missing_hours=span.hours - sum(_common(one.hours, span) for one in known) if span else 0,
        failed=_causes(
            (one.failed.error or "no error is recorded", hour, one.failed.finished_at)
            for one in known
            if one.failed is not None
            for hour in one.hours.starts()
        ),
        wrong=_causes((failure.text, hour, None) for hour, failure in wrong.items()),
        lag_hours=max(0, (last_closed_hour_end() - (done_until or first)) // HOUR),
        rows=rows,
    )


def _common(one: Window, other: Window) -> int:
    """Return the number of hours that are in both windows."""
    return max(0, (min(one.end, other.end) - max(one.start, other.start)) // HOUR)


def _causes(failures: Iterable[tuple[str, datetime, datetime | None]]) -> tuple[Cause, ...]:
    """Group hours by the error that they failed with, the latest first."""
    by_error: dict[str, list[tuple[datetime, datetime | None]]] = {}
    for error, hour, at in failures:
        by_error.setdefault(error, []).append((hour, at))
    causes = [
        Cause(
            error,
            tuple(sorted(hour for hour, _ in hours)),
            max((at for _, at in hours if at is not None), default=None),
        )
        for error, hours in by_error.items()
    ]
    return tuple(sorted(causes, key=_recency, reverse=True))


def _recency(cause: Cause) -> datetime:
    return cause.last_at or max(cause.hours)
