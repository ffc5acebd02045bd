"""Attempts laid over each other in plain Python, hour by hour, as `postgres.hours` does in SQL."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from itertools import groupby

from mcq_analytics.model.windows import HOUR, Window
from mcq_analytics.postgres.fact_tables import CANCELLED, FAILED, SUCCESS
from mcq_analytics.postgres.hours import FactHours, FailedAttempt, HourRange
from mcq_analytics.postgres.metadata import PastAttempt

START = datetime.fromisoformat("2024-01-01T00:00:00+00:00")

Record = tuple[PastAttempt | None, bool]


def ended(first: int, end: int, status: str = SUCCESS) -> PastAttempt:
    """Return an attempt over some hours, counted from the start."""
    window = Window(START + first * HOUR, START + end * HOUR)
    error = "the disk is full" if status == FAILED else None
    return PastAttempt("fact", window, status, None, None, START, START, "run", error)


def overlay(attempts: Iterable[PastAttempt]) -> FactHours:
    """Return the hours of a fact after these attempts: later ones lie on top."""
    records: dict[datetime, Record] = {}
    failed: set[Window] = set()
    for attempt in attempts:
        is_cancelled = attempt.status == CANCELLED
        if attempt.status == SUCCESS:
            failed.clear()
        elif not is_cancelled:
            failed.add(attempt.window)
        for hour in attempt.window.starts():
            latest, _ = records.get(hour, (None, False))
            records[hour] = (latest if is_cancelled else attempt, is_cancelled)

    def together(pair: tuple[int, datetime]) -> object:
        index, hour = pair
        latest, is_cancelled = records[hour]
        succeeded = latest is not None and latest.status == SUCCESS
        return hour - index * HOUR, is_cancelled, succeeded, None if succeeded else id(latest)

    ranges = []
    for _, pairs in groupby(enumerate(sorted(records)), together):
        hours = [hour for _, hour in pairs]
        latest, is_cancelled = records[hours[0]]
        ranges.append(
            HourRange(
                Window(hours[0], hours[-1] + HOUR),
                has_succeeded=latest is not None and latest.status == SUCCESS,
                failed=FailedAttempt(latest.window, latest.finished_at, latest.error)
                if latest is not None and latest.status == FAILED
                else None,
                is_cancelled=is_cancelled,
            )
        )
    return FactHours(tuple(ranges), len(failed))
