"""How far each fact is: hours done, missing and failed, as `mcq-analytics status` shows them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from mcq_analytics.alerting.incidents import Failure
from mcq_analytics.model.facts import FACTS
from mcq_analytics.model.windows import (
    HOUR,
    format_hour,
    hours_so_far,
    last_closed_hour_end,
    ranges,
)
from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.errors import explaining
from mcq_analytics.postgres.fact_tables import FAILED, SUCCESS
from mcq_analytics.postgres.identifiers import quoted
from mcq_analytics.postgres.metadata import HourRecord, fact_record
from mcq_analytics.settings import Settings

CAUSES_NAMED = 5
RANGES_NAMED = 3


@dataclass(frozen=True)
class Cause:
    """Hours that failed for one reason, and when they did so last. `text` is one line."""

    text: str
    hours: tuple[datetime, ...]
    last_at: datetime | None = None

    def __str__(self) -> str:
        """Name the hours and the reason."""
        named = ranges(self.hours)
        more = f" and {len(named) - RANGES_NAMED} more ranges" if len(named) > RANGES_NAMED else ""
        when = f", last at {format_hour(self.last_at)}" if self.last_at is not None else ""
        return f"{', '.join(map(str, named[:RANGES_NAMED]))}{more}{when}: {self.text}"


@dataclass(frozen=True)
class FactStatus:
    """How far a fact is. `done_until` is the end of its latest hour that succeeded.

    Missing and failed hours are counted from the partition start to the last hour that is over;
    the lag is the hours from `done_until` to there. Hours over which a check found the fact wrong
    count as failed. `failed` and `wrong` name the reasons, the latest first.
    """

    name: str
    done_until: datetime | None
    missing_hours: int
    failed_hours: int
    failed: tuple[Cause, ...]
    wrong: tuple[Cause, ...]
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
    span = hours_so_far(start)
    found = []
    with explaining("reading the status", SQLAlchemyError):
        for fact in FACTS:
            hours = fact_record(engine, fact.name, settings).hours
            known = {hour: one for hour, one in hours.items() if one.latest is not None}
            done = [hour for hour, one in known.items() if _status(one) == SUCCESS]
            failed = {hour: one for hour, one in known.items() if _status(one) == FAILED}
            done_until = max(done) + HOUR if done else None
            with engine.connect() as connection:
                rows = connection.execute(
                    text(f"SELECT count(*) FROM {quoted(settings.fact_schema, fact.name)}")
                ).scalar_one()
            found.append(
                FactStatus(
                    name=fact.name,
                    done_until=done_until,
                    missing_hours=sum(hour not in known for hour in span.starts()) if span else 0,
                    failed_hours=len({*failed, *wrong[fact.name]}),
                    failed=_causes_of_failed(failed),
                    wrong=_causes(
                        (failure.text, hour, None) for hour, failure in wrong[fact.name].items()
                    ),
                    lag_hours=max(0, (closed - (done_until or start)) // HOUR),
                    rows=rows,
                )
            )
    return found


def _status(record: HourRecord) -> str | None:
    return record.latest.status if record.latest is not None else None


def _causes_of_failed(failed: Mapping[datetime, HourRecord]) -> tuple[Cause, ...]:
    return _causes(
        (record.latest.error or "no error is recorded", hour, record.latest.finished_at)
        for hour, record in failed.items()
        if record.latest is not None
    )


def _causes(failures: Iterable[tuple[str, datetime, datetime | None]]) -> tuple[Cause, ...]:
    """Put together what failed for the same reason, the latest first."""
    by_text: dict[str, list[tuple[datetime, datetime | None]]] = {}
    for said, hour, at in failures:
        by_text.setdefault(said, []).append((hour, at))
    causes = [
        Cause(
            said,
            tuple(sorted(hour for hour, _ in hours)),
            max((at for _, at in hours if at is not None), default=None),
        )
        for said, hours in by_text.items()
    ]
    return tuple(sorted(causes, key=lambda cause: cause.last_at or max(cause.hours), reverse=True))
