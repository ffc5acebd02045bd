"""A realistic sample of the base tables as Arrow tables; `sample.sample_load` loads it.

`sample.drawing` draws sittings and answers. Here they become tables, with the flaws of real logs:
answers after expiry, submissions without answers, sessions and questions without a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pyarrow as pa

from mcq_analytics.errors import UsageError
from mcq_analytics.model.facts import IdType
from mcq_analytics.sample.drawing import HOUR_SECONDS, OPTIONS, Floats, SamplePlan
from mcq_analytics.sample.ids import Flags, SampleIds

MICROSECONDS = 1_000_000

STATUSES = np.array(["completed", "Completed", "COMPLETED", "timeout", "skipped", ""])
STATUS_SHARES = (0.76, 0.025, 0.015, 0.12, 0.075, 0.005)

SUBMITTED = 0.92
WITHOUT_ANSWERS = 0.01
EXPIRING_SITTINGS, EXPIRED_PART = 0.04, 0.25  # 4 % of sittings expire before their last quarter
NEVER_EXPIRING = 0.02
MISSING_SESSIONS = 0.01
WITHOUT_SESSION = 0.001
MISSING_QUESTIONS = 0.01
WITHOUT_KEY = 0.01


@dataclass(frozen=True)
class SampleTables:
    """The four base tables (docs/spec.md §1); times are in UTC, to the microsecond.

    Ids are int32, int64, strings or, for uuids, 16 bytes. Answers are sorted by time, with rising
    ids.

    - answers: answer_id, student_id, question_id, test_id, session_id (nullable), submitted_option
      (A to D; null if cleared), timestamp
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
    `student`, `question`, `test`, `session`. Ids are numbers that count from the first id, or are
    made from such a number: a text is `student-000123`. All times are within the span. A student
    has at most one sitting per five hours on average, so the most active ones answer less in a
    short span.

    >>> start = datetime(2024, 1, 1, tzinfo=timezone.utc)
    >>> generate_sample(students=50, start=start, hours=48, seed=1).answers.num_rows
    3975

    Raises:
        UsageError: `students` or `hours` is less than 1, `seed` is negative, or `start` has no
            time zone.

    """
    for name, value, least in (("students", students, 1), ("hours", hours, 1), ("seed", seed, 0)):
        if value < least:
            raise UsageError(f"{name} is {value}; it must be at least {least}")
    if start.tzinfo is None:
        raise UsageError(f"the start {start.isoformat()} has no time zone: give it in UTC")
    plan = SamplePlan(np.random.default_rng(seed), students, hours)
    ids = SampleIds(id_types or {}, first_ids or {})
    return _Tables(plan, ids, origin=round(start.timestamp() * MICROSECONDS)).build()


class _Tables:
    """Turns a plan into tables; `origin` is the start of the span in microseconds since 1970."""

    def __init__(self, plan: SamplePlan, ids: SampleIds, *, origin: int) -> None:
        self._plan = plan
        self._ids = ids
        self._origin = origin
        self._random = plan.random
        self._used, self._session = np.unique(plan.sitting, return_inverse=True)
        self._last = np.full(self._used.size, -1.0)
        np.maximum.at(self._last, self._session, plan.moment)

    def build(self) -> SampleTables:
        return SampleTables(
            answers=self._answers(),
            questions=self._questions(),
            sessions=self._sessions(),
            submissions=self._submissions(),
        )

    def _answers(self) -> pa.Table:
        plan = self._plan
        order = np.argsort(plan.moment, kind="stable")
        sitting = plan.sitting[order]
        without_session = self._random.random(order.size) < WITHOUT_SESSION
        options = pa.array(OPTIONS).take(
            pa.array(plan.option[order], pa.int64(), mask=plan.cleared[order])
        )
        return pa.table(
            {
                "answer_id": self._ids.column("answer", np.arange(order.size)),
                "student_id": self._ids.column("student", plan.student[sitting]),
                "question_id": self._ids.column("question", plan.question[order]),
                "test_id": self._ids.column("test", plan.test[sitting]),
                "session_id": self._ids.column("session", self._session[order], without_session),
                "submitted_option": options,
                "timestamp": self._moments(plan.moment[order]),
            }
        )

    def _questions(self) -> pa.Table:
        plan = self._plan
        numbers = np.unique(plan.question_number)
        numbers = numbers[self._random.random(numbers.size) >= MISSING_QUESTIONS]
        without_key = self._random.random(numbers.size) < WITHOUT_KEY
        return pa.table(
            {
                "question_id": self._ids.column("question", numbers),
                "correct_option": pa.array(OPTIONS).take(
                    pa.array(plan.key[numbers], pa.int64(), mask=without_key)
                ),
            }
        )

    def _sessions(self) -> pa.Table:
        plan, random = self._plan, self._random
        used, last = self._used, self._last
        begin = plan.begin[used]
        # Sessions of the last hour expire sooner, so that their expiry is within the span too.
        grace = np.minimum(
            random.uniform(5 * 60.0, 60 * 60.0, used.size),
            (plan.span - last) * random.uniform(0.5, 0.99, used.size),
        )
        early = random.random(used.size) < EXPIRING_SITTINGS
        expiry = np.where(early, begin + (last - begin) * (1 - EXPIRED_PART), last + grace)
        never = random.random(used.size) < NEVER_EXPIRING
        there = random.random(used.size) >= MISSING_SESSIONS
        return pa.table(
            {
                "session_id": self._ids.column("session", np.flatnonzero(there)),
                "expiry_time": self._moments(expiry[there], never[there]),
            }
        )

    def _submissions(self) -> pa.Table:
        plan, random = self._plan, self._random
        used, last = self._used, self._last
        handed_in = random.random(used.size) < SUBMITTED
        sitting, moment = used[handed_in], last[handed_in]
        moment = moment + random.lognormal(np.log(15.0), 0.7, moment.size)
        extra = int(np.ceil(WITHOUT_ANSWERS * sitting.size))
        # Another student submits a sitting's test soon after it, while the test is open.
        other = random.integers(0, used.size, extra)
        student = np.append(plan.student[sitting], random.integers(0, plan.students, extra))
        test = np.append(plan.test[sitting], plan.test[used[other]])
        moment = np.append(moment, last[other] + random.uniform(0.0, HOUR_SECONDS, extra))
        kept = moment < plan.span
        order = np.argsort(moment[kept], kind="stable")
        status = random.choice(STATUSES.size, order.size, p=STATUS_SHARES)
        return pa.table(
            {
                "student_id": self._ids.column("student", student[kept][order]),
                "test_id": self._ids.column("test", test[kept][order]),
                "submit_time": self._moments(moment[kept][order]),
                "completion_status": pa.array(STATUSES).take(
                    pa.array(status, pa.int64(), mask=STATUSES[status] == "")
                ),
            }
        )

    def _moments(self, seconds: Floats, missing: Flags | None = None) -> pa.Array:
        microseconds = self._origin + np.floor(seconds * MICROSECONDS).astype(np.int64)
        return pa.array(microseconds, pa.int64(), mask=missing).cast(pa.timestamp("us", tz="UTC"))
