"""Audits of stored rows in plain SQL, independent of the Spark code that computed them.

Per window: a recompute of some students' tests, what spans students against what is stored of each,
and counts of base rows without a counterpart. What every row must satisfy is left to the
constraints of the tables. `definitions.checks` turns the results into asset checks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text
from sqlalchemy.dialects import postgresql

from mcq_analytics.compute.fingerprints import computed_hours, stale_hours, stored_rows
from mcq_analytics.compute.handed_in import handed_in
from mcq_analytics.compute.judged_answers import judged, outcomes
from mcq_analytics.compute.selections import Selections
from mcq_analytics.compute.spanning import TOTALS
from mcq_analytics.compute.touched import plan_setting
from mcq_analytics.model.facts import (
    QUESTION_INTERACTION,
    STUDENT_TEST,
    SUBMISSION_COUNTS,
    TEST_FUNNEL,
    ColumnType,
    Fact,
    FactColumn,
)
from mcq_analytics.model.windows import HOUR, Window, ranges
from mcq_analytics.postgres.identifiers import quoted
from mcq_analytics.postgres.inspection import SQL_TYPES, BaseTables
from mcq_analytics.quality.audit_statements import (
    ANSWERS,
    DIFFERENT_ROWS,
    DIFFERENT_SUMS,
    EXPECTED,
    HOURS_OF_STUDENT_TESTS,
    REFERENCES,
    SAMPLE_OF_WINDOW,
    SUMS,
)

SAMPLE = 12
"""Students' tests of a window that are recomputed, from their whole history."""
SAMPLED_ROWS = 100_000
"""The sample of a window with more base rows is drawn from a part of it."""
SUMMED_ROWS = 1_000
"""About so many submissions are summed up for each hour of a window: all of small tests, and those
of a larger test in as many of its hours as its share allows."""
_GOLDEN = 0.6180339887498949
"""The fractions of its multiples are spread evenly between 0 and 1."""

_Pair = tuple[object, object]


@dataclass(frozen=True)
class Recomputed:
    """The result of recomputing a sample of students' tests: its size, and the keys of wrong rows.

    Rows in `awaiting` differ because base rows of the student's test arrived or changed since, in
    hours that are still to run. Rows in `wrong` have no such excuse.
    """

    sampled: int
    wrong: tuple[str, ...]
    awaiting: tuple[str, ...]


@dataclass(frozen=True)
class Audits:
    """The audits of one fact over a window. Run all of them in one snapshot."""

    fact: Fact
    base: BaseTables
    schema: str
    window: Window

    def computed_until(self, connection: Connection) -> datetime | None:
        """Return the end of the latest hour that the facts were computed over, or None."""
        statement = (
            f"SELECT max(hour) + interval '1 hour' FROM {quoted(self.schema, 'hour_fingerprint')}"
        )
        found: datetime | None = connection.execute(text(statement)).scalar()
        return found

    def references(self, connection: Connection) -> dict[str, int]:
        """Return the number of base rows of the window without a counterpart, by kind."""
        if self.fact.name not in REFERENCES:
            return {}
        connection.execute(text(plan_setting(self.base)))
        statement = text(self._fill(REFERENCES[self.fact.name]))
        return dict(connection.execute(statement, self._window).mappings().one())

    def recomputed(self, connection: Connection, seed: int = 0) -> Recomputed:
        """Recompute a sample of students' tests, drawn by `seed`; check what spans students.

        For the funnel, the rows are those of which its sums are made; then the sums are compared.
        """
        connection.execute(text(plan_setting(self.base)))
        sample, sampled = self._draw(connection, seed)
        rows = connection.execute(text(self._different_rows(sample))).all()
        unsettled = self._unsettled(connection, {(row.student_id, row.test_id) for row in rows})
        wrong = [row.key for row in rows if (row.student_id, row.test_id) not in unsettled]
        if self.fact == TEST_FUNNEL:
            bound = {
                "summed": SUMMED_ROWS * self.window.hours,
                "draw": seed * _GOLDEN % 1,
                "seed": str(seed),
            }
            wrong += connection.execute(text(self._different_sums(sample)), bound).scalars()
        return Recomputed(
            sampled,
            wrong=tuple(wrong),
            awaiting=tuple(row.key for row in rows if (row.student_id, row.test_id) in unsettled),
        )

    def _draw(self, connection: Connection, seed: int) -> tuple[str, int]:
        """Return the name of the table of the sample, and its size."""
        part = self._sampled(connection, seed)
        name = f"sample_{part.start:%Y%m%d%H}_{part.hours}_{seed}"
        exists = connection.execute(text("SELECT to_regclass(:name)"), {"name": f"pg_temp.{name}"})
        if exists.scalar() is None:
            bound = {
                "window_start": part.start,
                "window_end": part.end,
                "sample": SAMPLE,
                "seed": seed,
            }
            connection.execute(
                text(self._fill(SAMPLE_OF_WINDOW, name=name, touched=self._templates.touched())),
                bound,
            )
            connection.execute(text(f"ANALYZE {name}"))
        count: int = connection.execute(text(f"SELECT count(*) FROM {name}")).scalar_one()
        return name, count

    def _sampled(self, connection: Connection, seed: int) -> Window:
        """Return the part of the window that the sample is drawn from."""
        rows = stored_rows(connection, self.schema, self.window)
        part = self.window
        while part.hours > 1 and sum(rows.get(hour, 0) for hour in part.starts()) > SAMPLED_ROWS:
            middle = part.start + part.hours // 2 * HOUR
            halves = (Window(part.start, middle), Window(middle, part.end))
            filled = [half for half in halves if any(rows.get(hour) for hour in half.starts())]
            part = filled[seed % len(filled)]
            seed //= 2
        return part

    def _different_rows(self, sample: str) -> str:
        of_submissions = self.fact == TEST_FUNNEL
        table = "student_test_submissions" if of_submissions else self.fact.name
        key = STUDENT_TEST if of_submissions else self.fact.key
        return self._fill(
            DIFFERENT_ROWS,
            sample=sample,
            expected=self._fill(
                EXPECTED[self.fact.name],
                judged=self._fill(judged(ANSWERS), sample=sample),
                outcomes=outcomes(),
                totals=TOTALS.format(
                    touched=sample, interactions=quoted(self.schema, QUESTION_INTERACTION.name)
                ),
                handed_in=self._fill(handed_in(sample)),
            ),
            table=quoted(self.schema, table),
            key=", ".join(map(quoted, key)),
            different=_different(SUBMISSION_COUNTS if of_submissions else self.fact.columns),
        )

    def _different_sums(self, sample: str) -> str:
        return self._fill(
            DIFFERENT_SUMS,
            sample=sample,
            table=quoted(self.schema, TEST_FUNNEL.name),
            stored=quoted(self.schema, "student_test_submissions"),
            counts=", ".join(f"sum({one.name}) AS {one.name}" for one in SUBMISSION_COUNTS),
            sums=", ".join(f"{sql} AS {name}" for name, sql in SUMS.items()),
            different=_different([*TEST_FUNNEL.columns, *TEST_FUNNEL.technical]),
        )

    def _unsettled(self, connection: Connection, pairs: Iterable[_Pair]) -> set[_Pair]:
        """Return the students' tests with an hour that was never computed, or has changed since."""
        chosen = list(pairs)
        if not chosen:
            return set()
        types = {
            name: SQL_TYPES[self.base.student_test_type(name)].compile(postgresql.dialect())
            for name in STUDENT_TEST
        }
        statement = self._fill(
            HOURS_OF_STUDENT_TESTS,
            students=f"CAST(:students AS {types['student_id']}[])",
            tests=f"CAST(:tests AS {types['test_id']}[])",
        )
        bound = {"students": [pair[0] for pair in chosen], "tests": [pair[1] for pair in chosen]}
        pairs_of: dict[datetime, set[_Pair]] = {}
        for hour, student, test in connection.execute(text(statement), bound):
            pairs_of.setdefault(hour, set()).add((student, test))
        done = computed_hours(connection, self.schema)
        unsettled = set().union(*(pairs_of[hour] for hour in pairs_of.keys() - done))
        # Comparing hours is expensive: only those that can still decide about a student's test.
        rest = (hour for hour, some in pairs_of.items() if hour in done and some - unsettled)
        for window in ranges(rest):
            for hour in stale_hours(connection, self.base, self.schema, window):
                unsettled |= pairs_of[hour]
        return unsettled

    @property
    def _window(self) -> dict[str, object]:
        return {"window_start": self.window.start, "window_end": self.window.end}

    def _fill(self, template: str, **more: str) -> str:
        return self._templates.fill(template, **more)

    @property
    def _templates(self) -> Selections:
        return Selections(self.base, {"hours": quoted(self.schema, "student_test_hour")})


def _different(columns: Sequence[FactColumn]) -> str:
    """Return the condition that `actual` and `expected` differ in some column."""
    conditions = []
    for column in columns:
        one, other = f"actual.{quoted(column.name)}", f"expected.{quoted(column.name)}"
        if column.type is ColumnType.FLOAT:
            # Sums in another order differ in the last digits.
            conditions.append(
                f"({one} IS NULL) <> ({other} IS NULL) "
                f"OR abs({one} - {other}) > 1e-9 * greatest(1, abs({other}))"
            )
        else:
            conditions.append(f"{one} IS DISTINCT FROM {other}")
    return " OR ".join(conditions)
