"""Compares base tables with facts in pieces, as many as fit into a tick of the late data sensor.

What a piece compares is in `compute.fingerprints` and `corrections`. A tick compares the newest
hours, then goes on with the lookback and with the past where the last one stopped, until it has
read about `ROWS_PER_TICK` rows: recent hours are compared often, old ones the more rarely the more
there are. If a piece takes too long, the server cancels it and the next one is half as large.
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

from mcq_analytics.compute.fingerprints import stale_hours, stored_rows
from mcq_analytics.model.facts import QUESTION_INTERACTION
from mcq_analytics.model.windows import HOUR, Window, format_hour, parse_hour
from mcq_analytics.postgres.errors import QUERY_CANCELED
from mcq_analytics.postgres.inspection import BaseTables
from mcq_analytics.quality.corrections import Corrections, Key

PIECE_SECONDS = 8
"""Time limit of a piece. Dagster gives a tick a minute for all of them."""
RECENT_SECONDS, PAST_SECONDS, KEY_SECONDS = 15, 25, 42
"""Since the start of the tick: when the last piece of each kind may begin."""
NEWEST_HOURS = 3
"""The newest hours, which every tick compares."""
TICKS_PER_LOOKBACK = 11
"""Within this many ticks, which is less than an hour, the whole lookback is compared."""
ROWS_PER_TICK, ROWS_OF_LOOKBACK = 500_000, 300_000
"""Base rows that a tick compares, and those of them in the lookback. At two to three microseconds
a row, a tick of five minutes takes less than 1 % of one core."""
HOURS_AT_ONCE = 168
ROWS_AT_ONCE = 50_000
FEWEST_ROWS = 100

_T = TypeVar("_T")


@dataclass(frozen=True)
class Round:
    """A comparison of all rows with one answer key: how far it is, and whether any was wrong."""

    answer_key: str
    after: Key | None = None
    is_wrong: bool = False


@dataclass(frozen=True)
class ComparisonState:
    """What the sensor remembers between ticks.

    `answer_key` is the fingerprint of the key that all rows agreed with; None during a `round`.
    `compared_until` is how far this pass over the past has come. `recent_down_to` is how far back
    the lookback was compared, None if completely: the next pass begins with its newest hours.
    """

    answer_key: str | None = None
    compared_until: datetime | None = None
    recent_down_to: datetime | None = None
    round: Round | None = None
    hours_at_once: int = HOURS_AT_ONCE
    rows_at_once: int = ROWS_AT_ONCE

    @classmethod
    def from_cursor(cls, cursor: str | None) -> ComparisonState:
        """Return the state in a cursor; the initial one without a cursor."""
        found = json.loads(cursor) if cursor else {}
        until, down_to = found.get("compared_until"), found.get("recent_down_to")
        current = found.get("round")
        return cls(
            found.get("answer_key"),
            parse_hour(until) if until else None,
            parse_hour(down_to) if down_to else None,
            Round(
                current["answer_key"],
                Key(*current["after"]) if current["after"] else None,
                current["is_wrong"],
            )
            if current
            else None,
            found.get("hours_at_once", HOURS_AT_ONCE),
            found.get("rows_at_once", ROWS_AT_ONCE),
        )

    def as_cursor(self) -> str:
        """Return the text that `from_cursor` reads."""
        current = self.round
        return json.dumps(
            {
                "answer_key": self.answer_key,
                "compared_until": _written(self.compared_until),
                "recent_down_to": _written(self.recent_down_to),
                "round": {
                    "answer_key": current.answer_key,
                    "after": current.after,
                    "is_wrong": current.is_wrong,
                }
                if current
                else None,
                "hours_at_once": self.hours_at_once,
                "rows_at_once": self.rows_at_once,
            }
        )


class Comparison:
    """The comparison of one tick, in one snapshot.

    `hours` are the hours to compute again; `changed` the new fingerprints, by hour and
    base table; `failure` names a piece of minimal size that took too long.
    """

    def __init__(
        self, connection: Connection, base: BaseTables, schema: str, state: ComparisonState
    ) -> None:
        self.state = state
        self.hours: set[datetime] = set()
        self.changed: dict[tuple[datetime, str], str] = {}
        self.failure: str | None = None
        self._connection = connection
        self._base = base
        self._schema = schema
        self._rows = 0
        self._began = monotonic()

    def compare_recent(self, window: Window) -> None:
        """Compare the newest hours, then go on back through the lookback `window`."""
        newest = max(window.start, window.end - NEWEST_HOURS * HOUR)
        if self._advance(window.end, newest, RECENT_SECONDS) != newest:
            return
        self._count(Window(newest, window.end))
        stopped_at = self.state.recent_down_to
        edge = stopped_at if stopped_at and window.start < stopped_at < newest else newest
        down_to = None
        if window.start < edge:
            part = Window(window.start, edge)
            share = -(-window.hours // TICKS_PER_LOOKBACK)
            limit = edge - self._affordable(part, ROWS_OF_LOOKBACK, share, backwards=True) * HOUR
            edge = self._advance(edge, limit, RECENT_SECONDS)
            if edge < part.end:
                self._count(Window(edge, part.end))
            down_to = edge if edge > window.start else None
        self.state = replace(self.state, recent_down_to=down_to)

    def compare_past(self, window: Window) -> None:
        """Compare hours before the lookback, oldest first, as many as the tick has left."""
        hours = self._affordable(window, ROWS_PER_TICK, 1)
        edge = self._advance(window.start, window.start + hours * HOUR, PAST_SECONDS)
        self.state = replace(self.state, compared_until=edge)

    def _affordable(
        self, window: Window, limit: int, at_least: int, *, backwards: bool = False
    ) -> int:
        """Return how many hours of a window can be compared before `limit` rows are read."""
        rows = stored_rows(self._connection, self._schema, window)
        left = limit - self._rows
        hours = 0
        for hour in sorted(window.starts(), reverse=backwards):
            left -= rows.get(hour, 0)
            if left < 0 and hours >= at_least:
                break
            hours += 1
        return hours

    def _count(self, window: Window) -> None:
        self._rows += sum(stored_rows(self._connection, self._schema, window).values())

    def compare_answer_key(self) -> None:
        """Compare the rows with the answer key, unless all agreed with this one before.

        The round starts again if the key changes meanwhile. If it found a wrong row, another round
        follows, to see whether a run has corrected it.
        """
        corrections = Corrections(self._base, self._schema)
        key = self._piece(
            PIECE_SECONDS, lambda: corrections.answer_key(self._connection), "the answer key"
        )
        if key is None:
            return
        if key == self.state.answer_key:
            return
        current = self.state.round
        if current is None or current.answer_key != key:
            current = Round(key)
        # Rows that agreed with the old key may have been computed with the new one by now.
        self.state = replace(self.state, answer_key=None, round=current)
        while self.state.round is not None and self._elapsed() < KEY_SECONDS:
            if not self._compare_page(corrections, self.state.round):
                return

    def _compare_page(self, corrections: Corrections, current: Round) -> bool:
        """Compare the next rows; return whether to go on."""
        began, rows = monotonic(), self.state.rows_at_once
        page = self._piece(
            PIECE_SECONDS,
            lambda: corrections.wrong_rows_after(self._connection, current.after, rows),
            f"{rows} rows of {QUESTION_INTERACTION.name}" if rows <= FEWEST_ROWS else None,
        )
        if page is None:
            self.state = replace(self.state, rows_at_once=max(FEWEST_ROWS, rows // 2))
            return rows > FEWEST_ROWS
        self.hours |= page.hours
        is_wrong = current.is_wrong or bool(page.hours)
        if page.last is None or page.rows < rows:
            agreed = None if is_wrong else current.answer_key
            self.state = replace(self.state, answer_key=agreed, round=None)
            return True
        if monotonic() - began < PIECE_SECONDS / 4:
            rows = min(2 * rows, ROWS_AT_ONCE)
        reached = replace(current, after=page.last, is_wrong=is_wrong)
        self.state = replace(self.state, round=reached, rows_at_once=rows)
        return True

    def _advance(self, edge: datetime, limit: datetime, until: float) -> datetime:
        """Compare hours from `edge` to `limit`, forwards or backwards; return how far it got."""
        while edge != limit and self._elapsed() < until:
            at_once = self.state.hours_at_once
            step = at_once * HOUR
            reached = max(limit, edge - step) if limit < edge else min(limit, edge + step)
            piece = Window(min(edge, reached), max(edge, reached))
            # A single hour that takes too long is skipped, and reported.
            if self._compare_hours(piece) or piece.hours == 1:
                edge = reached
            else:
                at_once = max(1, piece.hours // 2)
                self.state = replace(self.state, hours_at_once=at_once)
        return edge

    def _compare_hours(self, window: Window) -> bool:
        """Compare the fingerprints of a window; return whether there was enough time."""
        began = monotonic()
        smallest = f"the hour {format_hour(window.start)}" if window.hours == 1 else None
        stale = self._piece(
            PIECE_SECONDS,
            lambda: stale_hours(self._connection, self._base, self._schema, window),
            smallest,
        )
        if stale is None:
            return False
        self.hours |= set(stale)
        self.changed.update(
            ((hour, table), fingerprint)
            for hour, tables in stale.items()
            for table, fingerprint in tables.items()
        )
        at_once = self.state.hours_at_once
        if window.hours >= at_once and monotonic() - began < PIECE_SECONDS / 4:
            self.state = replace(self.state, hours_at_once=min(2 * at_once, HOURS_AT_ONCE))
        return True

    def _piece(self, seconds: float, work: Callable[[], _T], smallest: str | None) -> _T | None:
        """Do a piece of work in a savepoint; return None if the server cancelled it.

        `smallest` names a piece that cannot be made smaller.
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
