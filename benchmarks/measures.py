"""The measures: which cases each consists of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.contestants.contestant import Window
from benchmarks.datasets import (
    END,
    HOUR,
    HOURLY_ANSWERS_AT_2M,
    LARGE,
    MANY,
    MEASURED,
    START,
    Dataset,
    Shape,
)
from benchmarks.runs import Case

MEASURES = {
    "hour": "one hour",
    "day": "24 hours",
    "all": "720 hours into empty facts",
    "history": "an hour with 1, 10 and 100 times the past",
    "rows": "rows that the server fetches for an hour",
}
"""Memory, and an hour again, are measured along with these."""

ONE_HOUR = Window(MEASURED, MEASURED + HOUR)
DAY = Window(MEASURED, END)
EVERYTHING = Window(START, END)
FLOOR = "floor"
"""It reads everything, whatever the hour."""
PEERS = ("dbt", "sqlmesh")
WARM = "warm"
"""It fetches the rows that the project fetches without a warm server."""
LARGEST_FOR_ROWS = 2_000_000

_NO_STATISTICS = (
    """
    DELETE FROM pg_statistic USING pg_class
    WHERE pg_class.oid = starelid AND relnamespace::regnamespace::text !~ '^(pg_|information_)'
    """,
    """
    UPDATE pg_class SET reltuples = -1, relpages = 0, relallvisible = 0
    WHERE relkind IN ('r', 'i') AND relnamespace::regnamespace::text !~ '^(pg_|information_)'
    """,
    # Otherwise the server gathers them again in the middle of a run.
    """
    DO $$ DECLARE name text; BEGIN
        FOR name IN SELECT oid::regclass FROM pg_class WHERE relkind = 'r'
            AND relnamespace::regnamespace::text !~ '^(pg_|information_)'
        LOOP EXECUTE format('ALTER TABLE %s SET (autovacuum_enabled = false)', name); END LOOP;
    END $$
    """,
)
_OTHER_INDEXES = (
    "CREATE INDEX IF NOT EXISTS owner_answers_test_question ON answers (test_id, question_id)",
    "CREATE INDEX IF NOT EXISTS owner_answers_test ON answers (test_id)",
    "CREATE INDEX IF NOT EXISTS owner_answers_student ON answers (student_id)",
    "CREATE INDEX IF NOT EXISTS owner_submissions_student ON submissions (student_id)",
    "ANALYZE answers, submissions",
)
VARIANTS = {
    "": (),
    "without statistics": _NO_STATISTICS,
    "other indexes": _OTHER_INDEXES,
}


def cases(only: Sequence[str], answers: Sequence[int]) -> Iterator[Case]:
    """Yield the cases of the chosen measures and sizes; those of a dataset follow one another."""
    for size in answers:
        dataset = Dataset(MANY, size)
        if "hour" in only:
            yield Case("hour", dataset, ONE_HOUR, again=True)
        if "day" in only:
            yield Case("day", dataset, DAY)
        if "all" in only:
            yield Case("all", dataset, EVERYTHING, into_empty=True)
    if "rows" in only:
        size = min(max(answers), LARGEST_FOR_ROWS)
        for shape in (MANY, LARGE):
            yield from _rows(shape, size)
    if "history" in only:
        yield from _history(max(answers))


def _history(largest: int) -> Iterator[Case]:
    """Yield the same hour after 1, 10 and 100 times the past, the last of the largest size."""
    hourly = round(HOURLY_ANSWERS_AT_2M * largest / 2_000_000)
    for times in (1, 10, 100):
        past = Dataset(MANY, largest * times // 100, hourly)
        yield Case(
            "history", past, ONE_HOUR, variant=f"{times} \N{MULTIPLICATION SIGN}", without=(FLOOR,)
        )


def _rows(shape: Shape, size: int) -> Iterator[Case]:
    dataset = Dataset(shape, size)
    for variant, statements in VARIANTS.items():
        yield Case(
            "rows",
            dataset,
            ONE_HOUR,
            variant=variant,
            prepare=statements,
            once=True,
            without=(FLOOR, WARM, *(PEERS if variant else ())),
        )
