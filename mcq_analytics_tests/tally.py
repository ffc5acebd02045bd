"""What a session of tests has tried: counts that are shown at its end."""

from __future__ import annotations

from collections import Counter

TALLY: Counter[str] = Counter()
