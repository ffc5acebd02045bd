"""How many executors and partitions a load needs, by what a core was measured to do.

docs/scale.md has the measurement and the derivation.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

READ_RATE = 200_000
"""Answers a second and core: read from PostgreSQL and written into a shuffle."""
COMPUTED_RATE = 95_000
"""Answers a second and core: read from the shuffle, computed, and copied into staging tables."""
SHUFFLED_BYTES = 24
"""Bytes of an answer in a shuffle, compressed."""

SECONDS_OF_SPARK = 15.0
"""How long Spark's part of a run shall take, if the connections suffice."""
PARTITION_BYTES = 8 * 2**20
"""Of a shuffle, compressed. Sorting a task's rows then needs some 50 MB."""
LEAST_PARTITIONS = 8


@dataclass(frozen=True)
class Size:
    """Numbers of executors: minimum, initial and maximum; cores of each; shuffle partitions."""

    minimum: int
    initial: int
    maximum: int
    cores: int
    partitions: int


def size_of(records: int, cores: int, connections: int) -> Size:
    """Return the size for a load of `records` answers.

    Executors have up to `cores` cores. Each core runs a task, and each task has one connection to
    PostgreSQL: there are never more than `connections`.

    Raises:
        ValueError: a number is out of range.

    """
    if records < 0 or cores < 1 or connections < 1:
        raise ValueError(
            f"{records} records, {cores} cores, {connections} connections: the first must not be "
            "negative, the others must be positive"
        )
    cores = min(cores, connections)
    core_seconds = records / READ_RATE + records / COMPUTED_RATE
    wanted = ceil(core_seconds / SECONDS_OF_SPARK / cores)
    maximum = max(1, min(wanted, connections // cores))
    of_bytes = ceil(records * SHUFFLED_BYTES / PARTITION_BYTES)
    # Twice the tasks, so that one that takes longer does not keep the others waiting.
    partitions = max(LEAST_PARTITIONS, of_bytes, 2 * maximum * cores if maximum > 1 else 0)
    return Size(ceil(maximum / 8), ceil(maximum / 2), maximum, cores, partitions)
