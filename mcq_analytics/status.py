"""How far each fact is: hours done, missing and failed, as `mcq-analytics status` shows them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from mcq_analytics.facts import FACTS
from mcq_analytics.incidents import Failure
from mcq_analytics.settings import Settings
from mcq_analytics.storage.database import Database
from mcq_analytics.storage.fact_tables import FAILED, SUCCESS
from mcq_analytics.storage.faults import explaining
from mcq_analytics.storage.metadata import get_last_successful_runs, hour_statuses
from mcq_analytics.storage.selections import quoted
from mcq_analytics.windows import HOUR, last_closed_hour_end, ranges

RANGES_NAMED = 3


@dataclass(frozen=True)
class FactStatus:
    """How far a fact is. `done_until` is the end of its latest hour that succeeded.

    Missing and failed hours are counted from the partition start to the last hour that is over;
    the lag is the hours from `done_until` to there. Hours over which a check found the fact wrong
    count as failed; `wrong_ranges` names them, and `wrong` says what was found.
    """

    name: str
    done_until: datetime | None
    missing_hours: int
    failed_hours: int
    failed_ranges: str
    last_error: str | None
    wrong_ranges: str
    wrong: str | None
    lag_hours: int
    rows: int


def fact_statuses(
    database: Database, settings: Settings, wrong: Mapping[str, Mapping[datetime, Failure]]
) -> list[FactStatus]:
    """Return the status of every fact. `wrong` has the hours, by fact, that a check found wrong.

    Raises:
        McqError: the database cannot be read, or `init-db` has not been run.

    """
    engine = database.engine()
    closed = last_closed_hour_end()
    start = settings.partition_start
    found = []
    with explaining("reading the status", SQLAlchemyError):
        for fact in FACTS:
            statuses = hour_statuses(engine, fact.name, settings)
            done = [hour for hour, status in statuses.items() if status == SUCCESS]
            failed = [hour for hour, status in statuses.items() if status == FAILED]
            done_until = max(done) + HOUR if done else None
            known = sum(1 for hour in statuses if start <= hour < closed)
            errors = [
                attempt.error
                for attempt in get_last_successful_runs(engine, fact.name, limit=20)
                if attempt.status == FAILED
            ]
            with engine.connect() as connection:
                rows = connection.execute(
                    text(f"SELECT count(*) FROM {quoted(settings.fact_schema, fact.name)}")
                ).scalar_one()
            found.append(
                FactStatus(
                    name=fact.name,
                    done_until=done_until,
                    missing_hours=max(0, (closed - start) // HOUR - known),
                    failed_hours=len({*failed, *wrong[fact.name]}),
                    failed_ranges=_named(failed),
                    last_error=errors[0] if failed and errors else None,
                    wrong_ranges=_named(wrong[fact.name]),
                    wrong=_latest(wrong[fact.name]),
                    lag_hours=max(0, (closed - (done_until or start)) // HOUR),
                    rows=rows,
                )
            )
    return found


def _named(hours: Iterable[datetime]) -> str:
    return ", ".join(map(str, ranges(hours)[:RANGES_NAMED]))


def _latest(wrong: Mapping[datetime, Failure]) -> str | None:
    return wrong[max(wrong)].text if wrong else None
