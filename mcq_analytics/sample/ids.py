"""Ids of a sample: entity numbers as integers, texts or uuids, and uuids back to their numbers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mcq_analytics.model.facts import IdType

Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Words = npt.NDArray[np.uint64]

LEAST_DIGITS = 6

# A version 4 uuid: 60 bits of its first half and 62 of its second are free.
FREE_HIGH, VERSION_4 = np.uint64(0xFFFFFFFFFFFF0FFF), np.uint64(0x4000)
FREE_LOW, VARIANT = np.uint64(0x3FFFFFFFFFFFFFFF), np.uint64(0x8000000000000000)
VERSION_SHIFT, VERSIONS = np.uint64(12), range(16)
GOLDEN_WORD = np.uint64(0x9E3779B97F4A7C15)
# The factors of SplitMix64's finaliser, and their inverses modulo 2^64.
FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
INVERSES = tuple(pow(factor, -1, 2**64) for factor in FACTORS)


class SampleIds:
    """Turns entity numbers, counted from 0, into id columns.

    `types` and `first` map an entity (`student`, `test`, ...) to its id type (default: bigint) and
    to the number that its first id stands for (default: 1).
    """

    def __init__(self, types: Mapping[str, IdType], first: Mapping[str, int]) -> None:
        self._types = types
        self._first = first

    def column(self, entity: str, numbers: Integers, missing: Flags | None = None) -> pa.Array:
        """Return the ids of some entities; those that are `missing` are null."""
        kind = self._types.get(entity, IdType.BIGINT)
        absolute = numbers + self._first.get(entity, 1)
        if kind in (IdType.INTEGER, IdType.BIGINT):
            arrow = pa.int32() if kind is IdType.INTEGER else pa.int64()
            return pa.array(absolute, arrow, mask=missing)
        distinct, index = np.unique(absolute, return_inverse=True)
        texts = _uuids(entity, distinct) if kind is IdType.UUID else _texts(entity, distinct)
        return texts.take(pa.array(index, pa.int64(), mask=missing))


def numbers_of_uuids(entity: str, octets: bytes) -> Words:
    """Return the numbers behind those uuids that a sample made for `entity`; skip all others.

    `octets` holds the uuids back to back, 16 bytes each.
    """
    high, low = np.frombuffer(octets, ">u8").astype(np.uint64).reshape(-1, 2).T
    fourth = (high & ~FREE_HIGH) == VERSION_4
    high, low = high[fourth] & FREE_HIGH, low[fourth]
    found = []
    # The version overwrote four bits of the first half: try all values, the second half tells.
    for bits in VERSIONS:
        whole = high | (np.uint64(bits) << VERSION_SHIFT)
        own = ((_mixed(whole ^ GOLDEN_WORD) & FREE_LOW) | VARIANT) == low
        found.append(_unmixed(whole[own]))
    return np.asarray(np.concatenate(found) ^ _salt(entity))


def _texts(entity: str, numbers: Integers) -> pa.Array:
    digits = pc.utf8_lpad(pa.array(numbers).cast(pa.string()), LEAST_DIGITS, "0")
    return pc.binary_join_element_wise(entity, digits, "-")


def _uuids(entity: str, numbers: Integers) -> pa.Array:
    """Return a version 4 uuid for each number, the same for the same entity and number."""
    high = _mixed(numbers.astype(np.uint64) ^ _salt(entity))
    low = (_mixed(high ^ GOLDEN_WORD) & FREE_LOW) | VARIANT
    octets = np.stack([(high & FREE_HIGH) | VERSION_4, low], axis=1).astype(">u8")
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(16), numbers.size, [None, pa.py_buffer(octets)]
    )


def _salt(entity: str) -> np.uint64:
    return np.uint64(int.from_bytes(entity.encode().ljust(8, b"-")[:8], "big"))


def _mixed(words: Words) -> Words:
    """Mix the bits of 64-bit words (the finaliser of SplitMix64, a bijection)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(FACTORS[0])
    words = (words ^ (words >> np.uint64(27))) * np.uint64(FACTORS[1])
    return np.asarray(words ^ (words >> np.uint64(31)))


def _unmixed(words: Words) -> Words:
    """Invert `_mixed`."""
    words = (words ^ (words >> np.uint64(31)) ^ (words >> np.uint64(62))) * np.uint64(INVERSES[1])
    words = (words ^ (words >> np.uint64(27)) ^ (words >> np.uint64(54))) * np.uint64(INVERSES[0])
    return np.asarray(words ^ (words >> np.uint64(30)) ^ (words >> np.uint64(60)))
