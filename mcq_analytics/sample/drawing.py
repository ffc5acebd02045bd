"""Drawing a sample as plain numbers: who sits which test when, and answers what.

Shapes are those of real logs: answers per student heavy-tailed, sittings of seconds between answers
and of hours or days between them, tests open for two weeks, retakes, changed and cleared options.
How the numbers become tables is in `mcq_analytics.sample.generator`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

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
SHARED_QUESTIONS = 0.02
RETAKES = 0.2
RETAKE_DRAW = 0.12  # the other retakes are tests that a student comes upon again
CHANGED = 0.1
CLEARED = 0.014
CORRECT = 0.71


class SamplePlan:
    """Draws the sample as numbers: sittings first, then the answers within them.

    Times are seconds from the start of the span.
    """

    def __init__(self, random: np.random.Generator, students: int, hours: int) -> None:
        self.random = random
        self.students = students
        self.span = hours * HOUR_SECONDS
        self._draw_sittings()
        self._draw_tests()
        self._draw_answers()

    def _draw_sittings(self) -> None:
        """Draw who sits when, and how many answers each student gives at most."""
        random = self.random
        spread = np.log(P90_ANSWERS / MEDIAN_ANSWERS) / P90_DEVIATIONS
        budget = np.ceil(random.lognormal(np.log(MEDIAN_ANSWERS), spread, self.students))
        most = max(1, int(self.span / HOUR_SECONDS / HOURS_PER_SITTING))
        sittings = np.minimum(np.ceil(budget / ANSWERS_PER_SITTING) + 2, most).astype(np.int64)
        self.budget = budget
        self.student = np.repeat(np.arange(self.students), sittings)
        first = np.cumsum(sittings) - sittings
        # An hour at least lies between two sittings, and mostly much more, if there is room.
        pause = random.lognormal(np.log(18 * HOUR_SECONDS), 1.0, self.student.size)
        pause[first] = 0
        waited = np.add.reduceat(pause, first)
        room = np.maximum(self.span - sittings * HOUR_SECONDS, 0.1 * self.span)
        scale = np.minimum(1.0, 0.95 * room / np.maximum(waited, 1.0))
        pause *= np.repeat(scale, sittings)
        spare = np.maximum(room - waited * scale, 0.0)
        begin = random.random(self.students) * spare
        least = np.minimum(HOUR_SECONDS, self.span * 0.9 / np.maximum(sittings, 1))
        order = np.arange(self.student.size) - np.repeat(first, sittings)
        elapsed = _running_sum(pause, first, sittings)
        self.begin = np.repeat(begin, sittings) + elapsed + order * np.repeat(least, sittings)
        self.is_first = order == 0

    def _draw_tests(self) -> None:
        """Draw which test each sitting takes, of those that are open then."""
        random = self.random
        life = min(TEST_LIFE_HOURS * HOUR_SECONDS, self.span)
        taken = self.begin.size / (1 + RETAKES)
        count = max(3, int(np.ceil(taken / TAKERS_PER_TEST * (self.span + life) / self.span)))
        opening = np.linspace(-life, self.span, count, endpoint=False)
        low = np.searchsorted(opening, self.begin - life, side="right")
        high = np.maximum(np.searchsorted(opening, self.begin, side="right"), low + 1)
        # Steps of the golden ratio, so that a student comes back to a test by a retake alone.
        share = random.random(self.students)[self.student] + np.arange(low.size) * GOLDEN_RATIO
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
        random = self.random
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
        kept = (rank < self.budget[student]) & (moment < self.span - 1.0)
        self.sitting, self.question = sitting[kept], question[kept]
        self.option, self.cleared, self.moment = option[kept], cleared[kept], moment[kept]


def _running_sum(values: Floats, first: Integers, lengths: Integers) -> Floats:
    """Return the sum from the first value of each group to each value; groups are contiguous."""
    total = np.cumsum(values)
    before = total[first] - values[first]
    return np.asarray(total - np.repeat(before, lengths))
