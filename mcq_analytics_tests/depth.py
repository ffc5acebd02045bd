"""How much the tests try: a few cases of each kind, or all in `make test-deep`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import cycle, product
from typing import TypeVar

import pytest

One = TypeVar("One")
Other = TypeVar("Other")

FAULTS = int(os.environ.get("FAULTS", "1"))
"""How often each fault is injected; `make test-deep` sets it high."""
IS_DEEP = FAULTS > 1
deep = pytest.mark.skipif(not IS_DEEP, reason="make test-deep has the time for it")


def in_turns(ones: Iterable[One], others: Sequence[Other]) -> list[tuple[One, Other]]:
    """Return each one with one of the others, in turns; in `make test-deep` with each of them."""
    return list(product(ones, others) if IS_DEEP else zip(ones, cycle(others), strict=False))
