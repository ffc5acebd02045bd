"""The comparison of the base tables with the facts in pieces, as far as the time of a tick goes.

What is compared is in `fingerprints` and `corrections`. The server ends a piece that takes too
long: the next one is half as large. A tick goes on where the last one stopped, but begins with the
newest hours, so that nothing else keeps them from being compared.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from time import monotonic
from typing import TypeVar

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from mcq_analytics.compute.fingerprints import Fingerprints, stale_hours
from mcq_analytics.model.facts import FACTS, QUESTION_INTERACTION, TEST_SUMMARY, Fact
from mcq_analytics.model.windows import HOUR, Window, format_hour, parse_hour
from mcq_analytics.postgres.errors import QUERY_CANCELED
from mcq_analytics.postgres.inspection import BaseTables
from mcq_analytics.quality.corrections import Corrections, Key

PIECE_SECONDS = 8
"""After which the server ends a piece. Dagster gives a tick a minute for all of them."""
RECENT_SECONDS, PAST_SECONDS, KEY_SECONDS = 15, 25, 42
"""From the begin of the comparison: until when pieces of each kind are begun."""
HOURS_AT_ONCE = 168
ROWS_AT_ONCE = 50_000
FEWEST_ROWS = 100

_T = TypeVar("_T")


@dataclass(frozen=True)
class Round:
    """A comparison of all rows with an answer key: up to `after`, and whether one was wrong."""

    answer_key: str
    after: Key | None = None
    is_wrong: bool = False


@dataclass(frozen=True)
class ComparisonState:
    """What is remembered between ticks.

    `answer_key` is the one that all rows agreed with; while a `round` is under way there is none.
    Up to `compared_until` the past was compared in this pass, and down to `recent_down_to` the
    lookback, where they were not compared to the end.
    """

    answer_key: str | None = None
    compared_until: datetime | None = None
    recent_down_to: datetime | None = None
    round: Round | None = None
    hours_at_once: int = HOURS_AT_ONCE
    rows_at_once: int = ROWS_AT_ONCE

    @classmethod
    def from_cursor(cls, cursor: str | None) -> ComparisonState:
        """Return what a cursor says; an empty one says nothing."""
        found = json.loads(cursor) if cursor else {}
        until, down_to = found.get("compared_until"), found.get("recent_down_to")
        under_way = found.get("round")
        return cls(
            found.get("answer_key"),
            parse_hour(until) if until else None,
            parse_hour(down_to) if down_to else None,
            Round(
                under_way["answer_key"],
                Key(*under_way["after"]) if under_way["after"] else None,
                under_way["is_wrong"],
            )
            if under_way
            else None,
            found.get("hours_at_once", HOURS_AT_ONCE),
            found.get("rows_at_once", ROWS_AT_ONCE),
        )

    def as_cursor(self) -> str:
        """Return the text that `from_cursor` reads."""
        under_way = self.round
        return json.dumps(
            {
                "answer_key": self.answer_key,
                "compared_until": _written(self.compared_until),
                "recent_down_to": _written(self.recent_down_to),
                "round": {
                    "answer_key": under_way.answer_key,
                    "after": under_way.after,
                    "is_wrong": under_way.is_wrong,
                }
                if under_way
                else None,
                "hours_at_once": self.hours_at_once,
                "rows_at_once": self.rows_at_once,
            }
        )


class Comparison:
    """The comparison of one tick, on a connection whose transaction sees one state.

    `hours` are those to compute again, by fact; `changed` new fingerprints, by hour and base table;
    `failure` names a piece that took too long though it was as small as can be.
    """

    def __init__(
        self, connection: Connection, base: BaseTables, schema: str, state: ComparisonState
    ) -> None:
        self.state = state
        self.hours: dict[str, set[datetime]] = {fact.name: set() for fact in FACTS}
        self.changed: dict[tuple[datetime, str], str] = {}
        self.failure: str | None = None
        self._connection = connection
        self._base = base
        self._schema = schema
        self._began = monotonic()

    def compare_recent(self, window: Window) -> None:
        """Compare the fingerprints of the newest hours; then of those that come before them."""
        edge = self._advance(window.end, window.start, RECENT_SECONDS, pieces=1)
        if edge == window.end:
            return
        stopped_at = self.state.recent_down_to
        if stopped_at is not None and window.start < stopped_at < edge:
            edge = stopped_at
        edge = self._advance(edge, window.start, RECENT_SECONDS)
        down_to = edge if edge > window.start else None
        self.state = replace(self.state, recent_down_to=down_to)

    def compare_past(self, window: Window) -> None:
        """Compare the fingerprints of hours of the past, the oldest first."""
        edge = self._advance(window.start, window.end, PAST_SECONDS)
        self.state = replace(self.state, compared_until=edge)

    def compare_answer_key(self) -> None:
        """Compare the rows with the answer key, unless it is the one that all agreed with.

        A key that changes meanwhile begins the round anew, and so does a round that found a row
        wrong: the next one shows whether its run has brought it right.
        """
        corrections = Corrections(self._base, self._schema)
        key = self._piece(
            PIECE_SECONDS, lambda: corrections.answer_key(self._connection), "the answer key"
        )
        if key is None:
            return
        if key == self.state.answer_key:
            return
        under_way = self.state.round
        if under_way is None or under_way.answer_key != key:
            under_way = Round(key)
        # A row that agreed with the key of before may have been computed with the new one by now.
        self.state = replace(self.state, answer_key=None, round=under_way)
        while self.state.round is not None and self._elapsed() < KEY_SECONDS:
            if not self._compare_page(corrections, self.state.round):
                return

    def _compare_page(self, corrections: Corrections, under_way: Round) -> bool:
        """Compare the next rows; return whether it is worth while to go on."""
        began, rows = monotonic(), self.state.rows_at_once
        page = self._piece(
            PIECE_SECONDS,
            lambda: corrections.wrong_rows_after(self._connection, under_way.after, rows),
            f"{rows} rows of {QUESTION_INTERACTION.name}" if rows <= FEWEST_ROWS else None,
        )
        if page is None:
            self.state = replace(self.state, rows_at_once=max(FEWEST_ROWS, rows // 2))
            return rows > FEWEST_ROWS
        for fact in (QUESTION_INTERACTION, TEST_SUMMARY):
            self.hours[fact.name] |= page.hours
        is_wrong = under_way.is_wrong or bool(page.hours)
        if page.last is None or page.rows < rows:
            agreed = None if is_wrong else under_way.answer_key
            self.state = replace(self.state, answer_key=agreed, round=None)
            return True
        if monotonic() - began < PIECE_SECONDS / 4:
            rows = min(2 * rows, ROWS_AT_ONCE)
        reached = replace(under_way, after=page.last, is_wrong=is_wrong)
        self.state = replace(self.state, round=reached, rows_at_once=rows)
        return True

    def _advance(
        self, edge: datetime, limit: datetime, until: float, pieces: int | None = None
    ) -> datetime:
        """Compare hours from `edge` towards `limit`, on either side; return how far it has come."""
        compared = 0
        while edge != limit and self._elapsed() < until and compared != pieces:
            at_once = self.state.hours_at_once
            step = at_once * HOUR
            reached = max(limit, edge - step) if limit < edge else min(limit, edge + step)
            piece = Window(min(edge, reached), max(edge, reached))
            # An hour that takes too long alone is passed over, and told.
            if self._compare_hours(piece) or piece.hours == 1:
                edge = reached
                compared += 1
            else:
                at_once = max(1, piece.hours // 2)
                self.state = replace(self.state, hours_at_once=at_once)
        return edge

    def _compare_hours(self, window: Window) -> bool:
        """Compare the fingerprints of a window; return whether the time sufficed."""
        began = monotonic()
        stale: dict[str, Fingerprints] = {}
        for fact in FACTS:
            left = PIECE_SECONDS - (monotonic() - began)
            smallest = f"the hour {format_hour(window.start)}" if window.hours == 1 else None
            found = self._piece(left, self._stale(fact, window), smallest)
            if found is None:
                return False
            stale[fact.name] = found
        for fact_name, hours in stale.items():
            self.hours[fact_name] |= set(hours)
            self.changed.update(
                ((hour, table), fingerprint)
                for hour, tables in hours.items()
                for table, fingerprint in tables.items()
            )
        at_once = self.state.hours_at_once
        if window.hours >= at_once and monotonic() - began < PIECE_SECONDS / 4:
            self.state = replace(self.state, hours_at_once=min(2 * at_once, HOURS_AT_ONCE))
        return True

    def _stale(self, fact: Fact, window: Window) -> Callable[[], Fingerprints]:
        return lambda: stale_hours(self._connection, self._base, self._schema, fact, window)

    def _piece(self, seconds: float, work: Callable[[], _T], smallest: str | None) -> _T | None:
        """Do a piece of work in a savepoint; return None where the server had to end it.

        `smallest` is the name of one that cannot be cut.
        """
        try:
            with self._connection.begin_nested():
                self._connection.execute(
                    text("SELECT set_config('statement_timeout', :milliseconds, true)"),
                    {"milliseconds": str(max(1, round(seconds * 1_000)))},
                )
                return work()
        except DBAPIError as error:
            if getattr(error.orig, "pgcode", None) != QUERY_CANCELED:
                raise
            self.failure = smallest or self.failure
            return None

    def _elapsed(self) -> float:
        return monotonic() - self._began


def _written(hour: datetime | None) -> str | None:
    return hour.isoformat() if hour is not None else None
