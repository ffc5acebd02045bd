"""The random draws of a sample as plain numbers: who takes which test when, and answers what.

The shapes are those of real logs: answers per student are heavy-tailed; seconds lie between the
answers of a sitting, hours or days between sittings; tests are open for two weeks; students retake
tests, change options and clear them. `sample.generator` turns the numbers into tables.
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
HOURS_PER_SITTING = 5.0  # a student has time for one sitting in so many hours

OPTIONS = np.array(["A", "B", "C", "D"])
SHARED_QUESTIONS = 0.02
RETAKES = 0.2
RETAKE_DRAW = 0.12  # the other retakes happen as a student draws the same test again
CHANGED = 0.1
CLEARED = 0.014
CORRECT = 0.71


class SamplePlan:
    """Draws sittings, then their tests, then their answers. Times are seconds since the start."""

    def __init__(self, random: np.random.Generator, students: int, hours: int) -> None:
        self.random = random
        self.students = students
        self.span = hours * HOUR_SECONDS
        self._draw_sittings()
        self._draw_tests()
        self._draw_answers()

    def _draw_sittings(self) -> None:
        """Draw the times of all sittings, and the most answers that each student gives."""
        random = self.random
        spread = np.log(P90_ANSWERS / MEDIAN_ANSWERS) / P90_DEVIATIONS
        budget = np.ceil(random.lognormal(np.log(MEDIAN_ANSWERS), spread, self.students))
        most = max(1, int(self.span / HOUR_SECONDS / HOURS_PER_SITTING))
        sittings = np.minimum(np.ceil(budget / ANSWERS_PER_SITTING) + 2, most).astype(np.int64)
        self.budget = budget
        self.student = np.repeat(np.arange(self.students), sittings)
        first = np.cumsum(sittings) - sittings
        # At least an hour lies between two sittings; mostly much more, if there is room.
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
        """Draw the test of each sitting among those that are open then."""
        random = self.random
        life = min(TEST_LIFE_HOURS * HOUR_SECONDS, self.span)
        taken = self.begin.size / (1 + RETAKES)
        count = max(3, int(np.ceil(taken / TAKERS_PER_TEST * (self.span + life) / self.span)))
        opening = np.linspace(-life, self.span, count, endpoint=False)
        low = np.searchsorted(opening, self.begin - life, side="right")
        high = np.maximum(np.searchsorted(opening, self.begin, side="right"), low + 1)
        # Steps of the golden ratio rarely come back to the same test; retakes do.
        share = random.random(self.students)[self.student] + np.arange(low.size) * GOLDEN_RATIO
        test = np.minimum(low + (share % 1.0 * (high - low)).astype(np.int64), count - 1)
        retake = (random.random(low.size) < RETAKE_DRAW) & ~self.is_first
        # A retake repeats the previous test, which may be a retake itself.
        source = np.maximum.accumulate(np.where(retake, 0, np.arange(test.size)))
        self.test = test[source]
        self.questions = random.integers(1, MOST_QUESTIONS + 1, count)
        self.first_question = np.cumsum(self.questions) - self.questions
        self.question_count = int(self.questions.sum())
        self.key = random.integers(0, OPTIONS.size, self.question_count)
        shared = random.random(self.question_count) < SHARED_QUESTIONS
        shared[: self.questions[0]] = False
        numbers = np.arange(self.question_count)
        # Counted back from the test's first question: a question of an earlier test.
        previous = np.repeat(self.first_question, self.questions) - random.integers(
            1, MOST_QUESTIONS, self.question_count
        )
        self.question_number = np.where(shared, np.maximum(previous, 0), numbers)

    def _draw_answers(self) -> None:
        """Draw the answers of all sittings: a first pass, then the questions answered again."""
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

        # A student stops at their number of answers, and everybody at the end of the span.
        student = self.student[sitting]
        student_first = np.flatnonzero(np.diff(student, prepend=-1))
        sizes = np.diff(np.append(student_first, student.size))
        rank = np.arange(student.size) - np.repeat(student_first, sizes)
        kept = (rank < self.budget[student]) & (moment < self.span - 1.0)
        self.sitting, self.question = sitting[kept], question[kept]
        self.option, self.cleared, self.moment = option[kept], cleared[kept], moment[kept]


def _running_sum(values: Floats, first: Integers, lengths: Integers) -> Floats:
    """Return the running sum within each group; groups are contiguous."""
    total = np.cumsum(values)
    before = total[first] - values[first]
    return np.asarray(total - np.repeat(before, lengths))
