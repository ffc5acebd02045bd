"""A realistic sample of the base tables as Arrow tables; `sample.sample_load` loads it.

Shapes are those of real logs: answers per student heavy-tailed, sittings of seconds between answers
and of hours or days between them, tests open for two weeks, retakes, changed and cleared options,
answers after expiry, submissions without answers, sessions and questions without a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mcq_analytics.errors import UsageError
from mcq_analytics.model.facts import IdType

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Words = npt.NDArray[np.uint64]

MICROSECONDS = 1_000_000
HOUR_SECONDS = 3600.0
GOLDEN_RATIO = 0.6180339887498949

# Answers per student are lognormal, with this median and 90th percentile.
MEDIAN_ANSWERS = 71
P90_ANSWERS = 2_700
P90_DEVIATIONS = 1.2816

MOST_QUESTIONS = 40
TEST_LIFE_HOURS = 24.0 * 14
TAKERS_PER_TEST = 100
ANSWERS_PER_SITTING = 22
HOURS_PER_SITTING = 5.0  # a student finds time for no more sittings than that

OPTIONS = np.array(["A", "B", "C", "D"])
LEAST_DIGITS = 6

# A version 4 uuid: 60 bits of its first half and 62 of its second are free.
FREE_HIGH, VERSION_4 = np.uint64(0xFFFFFFFFFFFF0FFF), np.uint64(0x4000)
FREE_LOW, VARIANT = np.uint64(0x3FFFFFFFFFFFFFFF), np.uint64(0x8000000000000000)
VERSION_SHIFT, VERSIONS = np.uint64(12), range(16)
GOLDEN_WORD = np.uint64(0x9E3779B97F4A7C15)
# The factors of SplitMix64's finaliser, and their inverses modulo 2^64.
FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
INVERSES = tuple(pow(factor, -1, 2**64) for factor in FACTORS)

STATUSES = np.array(["completed", "Completed", "COMPLETED", "timeout", "skipped", ""])
STATUS_SHARES = (0.76, 0.025, 0.015, 0.12, 0.075, 0.005)

SHARED_QUESTIONS = 0.02
RETAKES = 0.2
RETAKE_DRAW = 0.12  # the rest of them are tests that a student comes upon again
CHANGED = 0.1
CLEARED = 0.014
CORRECT = 0.71
SUBMITTED = 0.92
WITHOUT_ANSWERS = 0.01
EXPIRING_SITTINGS, EXPIRED_PART = 0.04, 0.25  # a quarter of 4 % of the sittings comes too late
NEVER_EXPIRING = 0.02
MISSING_SESSIONS = 0.01
WITHOUT_SESSION = 0.001
MISSING_QUESTIONS = 0.01
WITHOUT_KEY = 0.01


@dataclass(frozen=True)
class SampleTables:
    """The four base tables with the columns of SPEC section 1; times are microseconds in UTC.

    Ids are int32, int64, strings or, for uuids, 16 bytes. Answers come in order of time, their ids
    rising.

    - answers: answer_id, student_id, question_id, test_id, session_id (nullable), submitted_option
      (A to D; null where cleared), timestamp
    - questions: question_id, correct_option (A to D, nullable)
    - sessions: session_id, expiry_time (nullable)
    - submissions: student_id, test_id, submit_time, completion_status (nullable)
    """

    answers: pa.Table
    questions: pa.Table
    sessions: pa.Table
    submissions: pa.Table


def generate_sample(
    *,
    students: int,
    start: datetime,
    hours: int,
    seed: int,
    id_types: Mapping[str, IdType] | None = None,
    first_ids: Mapping[str, int] | None = None,
) -> SampleTables:
    """Return a sample of `students` students over `hours` hours from `start`, an aware time.

    The same arguments give the same tables. `id_types` and `first_ids` are by entity: `answer`,
    `student`, `question`, `test`, `session`; an id is a number, or made from one, counted from the
    first. A text is the entity and the number, as `student-000123`. All times lie within the span.
    A student sits every five hours at most on average, so in a short span the most active answer
    less than they would.

    Raises:
        UsageError: `students` or `hours` is less than 1, `seed` is negative, or `start` has no
            time zone.

    """
    for name, value, least in (("students", students, 1), ("hours", hours, 1), ("seed", seed, 0)):
        if value < least:
            raise UsageError(f"{name} is {value}; it must be at least {least}")
    if start.tzinfo is None:
        raise UsageError(f"the start {start.isoformat()} has no time zone: give it in UTC")
    plan = _Plan(np.random.default_rng(seed), students, hours)
    ids = _Ids(id_types or {}, first_ids or {})
    origin = round(start.timestamp() * MICROSECONDS)
    return plan.tables(ids, origin)


class _Ids:
    """Turns the numbers of entities, counted from 0, into id columns."""

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


class _Plan:
    """Draws the sample as numbers: sittings first, then the answers within them.

    Times are seconds from the start of the span.
    """

    def __init__(self, random: np.random.Generator, students: int, hours: int) -> None:
        self._random = random
        self._students = students
        self._span = hours * HOUR_SECONDS
        self._draw_sittings()
        self._draw_tests()
        self._draw_answers()

    def _draw_sittings(self) -> None:
        """Draw who sits when, and how many answers each student gives at most."""
        random = self._random
        spread = np.log(P90_ANSWERS / MEDIAN_ANSWERS) / P90_DEVIATIONS
        budget = np.ceil(random.lognormal(np.log(MEDIAN_ANSWERS), spread, self._students))
        most = max(1, int(self._span / HOUR_SECONDS / HOURS_PER_SITTING))
        sittings = np.minimum(np.ceil(budget / ANSWERS_PER_SITTING) + 2, most).astype(np.int64)
        self.budget = budget
        self.student = np.repeat(np.arange(self._students), sittings)
        first = np.cumsum(sittings) - sittings
        # An hour at least lies between two sittings, and mostly much more, if there is room.
        pause = random.lognormal(np.log(18 * HOUR_SECONDS), 1.0, self.student.size)
        pause[first] = 0
        waited = np.add.reduceat(pause, first)
        room = np.maximum(self._span - sittings * HOUR_SECONDS, 0.1 * self._span)
        scale = np.minimum(1.0, 0.95 * room / np.maximum(waited, 1.0))
        pause *= np.repeat(scale, sittings)
        spare = np.maximum(room - waited * scale, 0.0)
        begin = random.random(self._students) * spare
        least = np.minimum(HOUR_SECONDS, self._span * 0.9 / np.maximum(sittings, 1))
        order = np.arange(self.student.size) - np.repeat(first, sittings)
        elapsed = _running_sum(pause, first, sittings)
        self.begin = np.repeat(begin, sittings) + elapsed + order * np.repeat(least, sittings)
        self.is_first = order == 0

    def _draw_tests(self) -> None:
        """Draw which test each sitting takes, of those that are open then."""
        random = self._random
        life = min(TEST_LIFE_HOURS * HOUR_SECONDS, self._span)
        taken = self.begin.size / (1 + RETAKES)
        count = max(3, int(np.ceil(taken / TAKERS_PER_TEST * (self._span + life) / self._span)))
        opening = np.linspace(-life, self._span, count, endpoint=False)
        low = np.searchsorted(opening, self.begin - life, side="right")
        high = np.maximum(np.searchsorted(opening, self.begin, side="right"), low + 1)
        # Steps of the golden ratio, so that a student comes back to a test by a retake alone.
        share = random.random(self._students)[self.student] + np.arange(low.size) * GOLDEN_RATIO
        test = np.minimum(low + (share % 1.0 * (high - low)).astype(np.int64), count - 1)
        retake = (random.random(low.size) < RETAKE_DRAW) & ~self.is_first
        # A retake is of what the student sat last; of a retake too.
        source = np.maximum.accumulate(np.where(retake, 0, np.arange(test.size)))
        self.test = test[source]
        self.questions = random.integers(1, MOST_QUESTIONS + 1, count)
        self.first_question = np.cumsum(self.questions) - self.questions
        self.question_count = int(self.questions.sum())
        self.key = random.integers(0, OPTIONS.size, self.question_count)
        shared = random.random(self.question_count) < SHARED_QUESTIONS
        shared[: self.questions[0]] = False
        numbers = np.arange(self.question_count)
        # Counted back from the test's first question, so that another test has it too.
        previous = np.repeat(self.first_question, self.questions) - random.integers(
            1, MOST_QUESTIONS, self.question_count
        )
        self.question_number = np.where(shared, np.maximum(previous, 0), numbers)

    def _draw_answers(self) -> None:
        """Draw the answers of all sittings: a first pass, then some that are answered again."""
        random = self._random
        asked = self.questions[self.test]
        sitting = np.repeat(np.arange(self.test.size), asked)
        position = np.arange(sitting.size) - np.repeat(np.cumsum(asked) - asked, asked)
        question = self.question_number[self.first_question[self.test[sitting]] + position]
        right = random.random(sitting.size) < CORRECT / (1 - CLEARED)
        other = (self.key[question] + random.integers(1, OPTIONS.size, sitting.size)) % OPTIONS.size
        final = np.where(right, self.key[question], other)
        again = np.flatnonzero(random.random(sitting.size) < CHANGED)
        before = final.copy()
        before[again] = (final[again] + random.integers(1, OPTIONS.size, again.size)) % OPTIONS.size
        sitting = np.concatenate([sitting, sitting[again]])
        position = np.concatenate([position, position[again] + MOST_QUESTIONS])
        question = np.concatenate([question, question[again]])
        option = np.concatenate([before, final[again]])

        order = np.lexsort((position, sitting))
        sitting, question, option = sitting[order], question[order], option[order]
        first = np.flatnonzero(np.diff(sitting, prepend=-1))
        lengths = np.diff(np.append(first, sitting.size))
        pause = random.lognormal(np.log(20.0), 0.8, sitting.size)
        moment = np.repeat(self.begin[sitting[first]], lengths) + _running_sum(
            pause, first, lengths
        )
        cleared = random.random(sitting.size) < CLEARED

        # Each student stops at their number of answers, and all stop at the end of the span.
        student = self.student[sitting]
        student_first = np.flatnonzero(np.diff(student, prepend=-1))
        sizes = np.diff(np.append(student_first, student.size))
        rank = np.arange(student.size) - np.repeat(student_first, sizes)
        kept = (rank < self.budget[student]) & (moment < self._span - 1.0)
        self.sitting, self.question = sitting[kept], question[kept]
        self.option, self.cleared, self.moment = option[kept], cleared[kept], moment[kept]

    def tables(self, ids: _Ids, origin: int) -> SampleTables:
        """Return the sample as tables, with times counted from `origin` (microseconds)."""
        used, sitting_of_answer = np.unique(self.sitting, return_inverse=True)
        last = np.full(used.size, -1.0)
        np.maximum.at(last, sitting_of_answer, self.moment)
        return SampleTables(
            answers=self._answers(ids, origin, sitting_of_answer),
            questions=self._questions(ids),
            sessions=self._sessions(ids, origin, used, last),
            submissions=self._submissions(ids, origin, used, last),
        )

    def _answers(self, ids: _Ids, origin: int, session: Integers) -> pa.Table:
        order = np.argsort(self.moment, kind="stable")
        sitting = self.sitting[order]
        without_session = self._random.random(order.size) < WITHOUT_SESSION
        options = pa.array(OPTIONS).take(
            pa.array(self.option[order], pa.int64(), mask=self.cleared[order])
        )
        return pa.table(
            {
                "answer_id": ids.column("answer", np.arange(order.size)),
                "student_id": ids.column("student", self.student[sitting]),
                "question_id": ids.column("question", self.question[order]),
                "test_id": ids.column("test", self.test[sitting]),
                "session_id": ids.column("session", session[order], without_session),
                "submitted_option": options,
                "timestamp": _moments(origin, self.moment[order]),
            }
        )

    def _questions(self, ids: _Ids) -> pa.Table:
        numbers = np.unique(self.question_number)
        numbers = numbers[self._random.random(numbers.size) >= MISSING_QUESTIONS]
        without_key = self._random.random(numbers.size) < WITHOUT_KEY
        return pa.table(
            {
                "question_id": ids.column("question", numbers),
                "correct_option": pa.array(OPTIONS).take(
                    pa.array(self.key[numbers], pa.int64(), mask=without_key)
                ),
            }
        )

    def _sessions(self, ids: _Ids, origin: int, used: Integers, last: Floats) -> pa.Table:
        random = self._random
        begin = self.begin[used]
        # Sessions in the last hour expire sooner, so that their expiry lies within the span too.
        grace = np.minimum(
            random.uniform(5 * 60.0, 60 * 60.0, used.size),
            (self._span - last) * random.uniform(0.5, 0.99, used.size),
        )
        early = random.random(used.size) < EXPIRING_SITTINGS
        expiry = np.where(early, begin + (last - begin) * (1 - EXPIRED_PART), last + grace)
        never = random.random(used.size) < NEVER_EXPIRING
        there = random.random(used.size) >= MISSING_SESSIONS
        return pa.table(
            {
                "session_id": ids.column("session", np.flatnonzero(there)),
                "expiry_time": _moments(origin, expiry[there], never[there]),
            }
        )

    def _submissions(self, ids: _Ids, origin: int, used: Integers, last: Floats) -> pa.Table:
        random = self._random
        handed_in = random.random(used.size) < SUBMITTED
        sitting, moment = used[handed_in], last[handed_in]
        moment = moment + random.lognormal(np.log(15.0), 0.7, moment.size)
        extra = int(np.ceil(WITHOUT_ANSWERS * sitting.size))
        # Someone else hands in the test of a sitting soon after it, while the test is open.
        other = random.integers(0, used.size, extra)
        student = np.append(self.student[sitting], random.integers(0, self._students, extra))
        test = np.append(self.test[sitting], self.test[used[other]])
        moment = np.append(moment, last[other] + random.uniform(0.0, HOUR_SECONDS, extra))
        kept = moment < self._span
        order = np.argsort(moment[kept], kind="stable")
        status = random.choice(STATUSES.size, order.size, p=STATUS_SHARES)
        return pa.table(
            {
                "student_id": ids.column("student", student[kept][order]),
                "test_id": ids.column("test", test[kept][order]),
                "submit_time": _moments(origin, moment[kept][order]),
                "completion_status": pa.array(STATUSES).take(
                    pa.array(status, pa.int64(), mask=STATUSES[status] == "")
                ),
            }
        )


def _running_sum(values: Floats, first: Integers, lengths: Integers) -> Floats:
    """Return the sum from the first value of each group to each value; groups are contiguous."""
    total = np.cumsum(values)
    before = total[first] - values[first]
    return np.asarray(total - np.repeat(before, lengths))


def _moments(origin: int, seconds: Floats, missing: Flags | None = None) -> pa.Array:
    microseconds = origin + np.floor(seconds * MICROSECONDS).astype(np.int64)
    return pa.array(microseconds, pa.int64(), mask=missing).cast(pa.timestamp("us", tz="UTC"))


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


def numbers_of_uuids(entity: str, octets: bytes) -> Words:
    """Return the numbers of which a sample makes those of some uuids that are its own.

    `octets` are the uuids' bytes, one uuid after the other.
    """
    high, low = np.frombuffer(octets, ">u8").astype(np.uint64).reshape(-1, 2).T
    fourth = (high & ~FREE_HIGH) == VERSION_4
    high, low = high[fourth] & FREE_HIGH, low[fourth]
    found = []
    # The version has taken the place of four bits; with the right ones the second half fits.
    for bits in VERSIONS:
        whole = high | (np.uint64(bits) << VERSION_SHIFT)
        own = ((_mixed(whole ^ GOLDEN_WORD) & FREE_LOW) | VARIANT) == low
        found.append(_unmixed(whole[own]))
    return np.asarray(np.concatenate(found) ^ _salt(entity))


def _salt(entity: str) -> np.uint64:
    return np.uint64(int.from_bytes(entity.encode().ljust(8, b"-")[:8], "big"))


def _mixed(words: Words) -> Words:
    """Mix the bits of 64-bit words (the finaliser of SplitMix64, a bijection)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(FACTORS[0])
    words = (words ^ (words >> np.uint64(27))) * np.uint64(FACTORS[1])
    return np.asarray(words ^ (words >> np.uint64(31)))


def _unmixed(words: Words) -> Words:
    """Return the words that `_mixed` has mixed."""
    words = (words ^ (words >> np.uint64(31)) ^ (words >> np.uint64(62))) * np.uint64(INVERSES[1])
    words = (words ^ (words >> np.uint64(27)) ^ (words >> np.uint64(54))) * np.uint64(INVERSES[0])
    return np.asarray(words ^ (words >> np.uint64(30)) ^ (words >> np.uint64(60)))
