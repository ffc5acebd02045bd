"""What `doctor` finds: a line for each thing that it has examined."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

from mcq_analytics.postgres.errors import explain

GIGABYTE = 10**9
LEAST_FREE = 2 * GIGABYTE
"""Bytes of disk, below which a run that spills may fail."""
MOST_SKEW = 5.0
"""Seconds between two clocks, from which on an hour may be taken for closed too early."""


class Grade(Enum):
    """How a thing is: fine, of note, or wrong."""

    FINE = "ok"
    NOTE = "note"
    WRONG = "wrong"


@dataclass(frozen=True)
class Finding:
    """A thing that was examined, how it is, and if it is wrong, what to do."""

    topic: str
    grade: Grade
    text: str


Examination = Callable[[], Iterator[Finding]]


def fine(topic: str, text: str) -> Finding:
    """Return a finding that all is well."""
    return Finding(topic, Grade.FINE, text)


def note(topic: str, text: str) -> Finding:
    """Return a finding that is worth knowing."""
    return Finding(topic, Grade.NOTE, text)


def wrong(topic: str, text: str) -> Finding:
    """Return a finding that something has to be mended."""
    return Finding(topic, Grade.WRONG, text)


def judged(topic: str, is_fine: bool, text: str, remedy: str) -> Finding:
    """Return a finding; the remedy is added if something is wrong."""
    return fine(topic, text) if is_fine else wrong(topic, f"{text}: {remedy}")


def of_disk(what: str, free: int) -> Finding:
    """Return what to say of the free bytes at a place."""
    text = f"{what} has {free / GIGABYTE:.1f} GB free"
    return judged("disk", free >= LEAST_FREE, text, f"make {LEAST_FREE // GIGABYTE} GB free there")


def of_clocks(one: str, other: str, seconds: float) -> Finding:
    """Return what to say of two clocks, of which one is ahead by some seconds."""
    ahead, behind = (one, other) if seconds > 0 else (other, one)
    if abs(seconds) <= MOST_SKEW:
        return fine("clocks", f"those of {one} and {other} agree")
    return wrong(
        "clocks",
        f"that of {ahead} is {abs(seconds):.0f} s ahead of that of {behind}: synchronise both, or "
        "answers come after their hour is computed",
    )


def carried_out(topic: str, examine: Examination) -> Iterator[Finding]:
    """Yield what an examination finds; an error that ends it is a finding, too."""
    try:
        yield from examine()
    except Exception as error:
        yield wrong(topic, str(explain(error, "examining it")))
