"""Counts of generated cases, printed at the end of a test session."""

from __future__ import annotations

from collections import Counter

TALLY: Counter[str] = Counter()
