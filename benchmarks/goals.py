"""The goals, and what was reached, from the latest results."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.records import OURS, WARM, Records, Row, decimal, millions, ratio, times

Goal = tuple[str, str, str]
"""A measure, its goal, and what was reached."""


def goals(records: Records) -> Iterator[Goal]:
    """Yield the goals of the measures that were taken."""
    yield from _hour(records)
    yield from _warm_hour(records)
    yield from _day(records)
    yield from _all(records)
    yield from _history(records)
    yield from _rows(records)
    yield from _memory(records)
    yield from _own_memory(records)


def own_seconds(records: Records, row: Row) -> float | None:
    """Return the seconds of an hour without the wait for Java, as in a session that is warm.

    A run that reports its wait (`seconds_java`) is believed; for others the start of a session in
    a process that does nothing else is taken off.
    """
    whole = row.median_seconds
    if whole is None:
        return None
    waited = row.phase_seconds.get("java")
    if waited is None:
        waited = records.sessions[row.session]["java_seconds"] or 0.0
    return whole - waited


def _hour(records: Records) -> Iterator[Goal]:
    for size in records.sizes("hour"):
        ours = records.row("hour", OURS, answers=size)
        dbt = records.row("hour", "dbt", answers=size)
        if ours is None:
            continue
        if dbt is not None:
            of_dbt = dbt.median_seconds
            about = f"one hour, {millions(size)} answers"
            yield (
                f"1. {about}",
                "≤ 2.5 \N{MULTIPLICATION SIGN} dbt cold",
                times(ratio(ours.median_seconds, of_dbt)),
            )
            yield (
                "1. its part without Java's start",
                "≤ 1.0 \N{MULTIPLICATION SIGN} dbt",
                times(ratio(own_seconds(records, ours), of_dbt)),
            )
        written = sum(ours.again_written.values())
        again = times(ratio(ours.again_database_seconds, ours.database_seconds))
        yield (
            f"7. the hour again, {millions(size)} answers",
            "0 rows written, ≤ 0.5 \N{MULTIPLICATION SIGN} the first database time",
            f"{written:,} rows, {again}",
        )


def _warm_hour(records: Records) -> Iterator[Goal]:
    for size in records.sizes("hour"):
        warm = records.row("hour", WARM, answers=size)
        dbt = records.row("hour", "dbt", answers=size)
        if warm is None:
            continue
        if dbt is not None:
            yield (
                f"1. one hour with a warm Spark server, {millions(size)} answers",
                "≤ 1.0 \N{MULTIPLICATION SIGN} dbt",
                times(ratio(warm.median_seconds, dbt.median_seconds)),
            )
        if "compute" in warm.phase_seconds:
            yield (
                f"8. the facts of an hour within Spark, after ten runs, {millions(size)} answers",
                "≤ 1.5 s",
                f"{warm.phase_seconds['compute']:.2f} s",
            )


def _day(records: Records) -> Iterator[Goal]:
    for size in records.sizes("day"):
        ours = records.row("day", OURS, answers=size)
        dbt = records.row("day", "dbt", answers=size)
        if ours is not None and dbt is not None:
            reached = _at_least(ours, dbt)
            yield (
                f"2. 24 hours, {millions(size)} answers",
                "≤ 0.2 \N{MULTIPLICATION SIGN} dbt",
                reached,
            )


def _all(records: Records) -> Iterator[Goal]:
    for size in records.sizes("all"):
        ours = records.row("all", OURS, answers=size)
        warm = records.row("all", WARM, answers=size)
        floor = records.row("all", "floor", answers=size)
        if floor is not None and (ours is not None or warm is not None):
            yield (
                f"3. 720 hours into empty facts with a warm Spark server, {millions(size)} answers",
                f"≤ {2 if size >= 10_000_000 else 3} \N{MULTIPLICATION SIGN} the floor",
                f"{_at_least(warm, floor)} (cold {_at_least(ours, floor)})",
            )


def _at_least(ours: Row | None, other: Row) -> str:
    """Return how many times the other's seconds ours are, a lower bound if ours was stopped."""
    if ours is None:
        return times(None)
    if ours.median_seconds is None and ours.stopped_after is not None:
        return f"> {times(ratio(ours.stopped_after, other.median_seconds))}"
    return times(ratio(ours.median_seconds, other.median_seconds))


def _history(records: Records) -> Iterator[Goal]:
    found = [
        records.row("history", OURS, variant=f"{by} \N{MULTIPLICATION SIGN}") for by in (1, 100)
    ]
    first, last = found
    if first is not None and last is not None:
        whole = times(ratio(last.median_seconds, first.median_seconds))
        database = times(ratio(last.database_seconds, first.database_seconds))
        yield (
            "4. an hour at 100 \N{MULTIPLICATION SIGN} the past, against 1 \N{MULTIPLICATION SIGN}",
            "≤ 1.2 \N{MULTIPLICATION SIGN}",
            f"{whole} (database time {database})",
        )


def _rows(records: Records) -> Iterator[Goal]:
    for shape, name in (("many", "many tests"), ("large", "few large tests")):
        rows = [row for row in records.rows("rows", contestant=OURS, shape=shape) if row.touched]
        if rows:
            most = max(row.fetched_rows / row.touched for row in rows)
            yield (
                f"5. rows fetched for an hour, {name}",
                "≤ 10 \N{MULTIPLICATION SIGN} the rows touched",
                times(most),
            )


def _memory(records: Records) -> Iterator[Goal]:
    for size in records.sizes("all"):
        row = records.row("all", OURS, answers=size)
        if row is not None:
            yield (
                f"6. peak memory of 720 hours, {millions(size)} answers",
                "< 3 GB, flat from 2 million",
                decimal(row.peak_gb, "GB"),
            )


def _own_memory(records: Records) -> Iterator[Goal]:
    """Yield the largest peak of a run on a warm server, in any work, and the server's beside it."""
    works = [
        row
        for measure in ("hour", "day", "all")
        for row in records.rows(measure, contestant=WARM)
        if row.peak_bytes
    ]
    for size in sorted({row.answers for row in works}):
        rows = [row for row in works if row.answers == size]
        own = max(max(row.peak_bytes) for row in rows) / 2**20
        server = max(row.service_peak_gb or 0.0 for row in rows)
        yield (
            f"6. peak memory of a run's own process, warm Spark server, {millions(size)} answers",
            "≤ 350 MB",
            f"{own:,.0f} MB (the server {decimal(server, 'GB')})",
        )
