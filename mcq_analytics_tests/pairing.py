"""Pairs of parameters: few of them, or all in `make test-deep`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import cycle, product
from typing import TypeVar

from mcq_analytics_tests.faults import FAULTS

One = TypeVar("One")
Other = TypeVar("Other")


def in_turns(ones: Iterable[One], others: Sequence[Other]) -> list[tuple[One, Other]]:
    """Return each one with one of the others, in turns; in `make test-deep` with each of them."""
    return list(product(ones, others) if FAULTS > 1 else zip(ones, cycle(others), strict=False))
