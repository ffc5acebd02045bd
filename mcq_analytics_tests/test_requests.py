"""Which hours become runs, over generated sets of wanted, busy and failed hours."""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from mcq_analytics.definitions.requests import requests
from mcq_analytics.model.windows import HOUR, Window
from mcq_analytics.postgres.fact_tables import CANCELLED, FAILED, SUCCESS
from mcq_analytics.postgres.hours import FactHours
from mcq_analytics.postgres.metadata import PastAttempt
from mcq_analytics_tests.overlay import START, ended, overlay

HOURS = st.sets(st.integers(0, 30).map(lambda index: START + index * HOUR))


@given(wanted=HOURS, busy=HOURS, limit=st.integers(1, 40), per_run=st.integers(1, 40))
def test_every_wanted_hour_that_is_not_in_progress_is_requested_once(
    wanted: set[datetime], busy: set[datetime], limit: int, per_run: int
) -> None:
    found = requests(wanted, busy, limit, per_run)
    asked = [hour for one in found for hour in one.starts()]
    free = sorted(wanted - busy)
    assert len(asked) == min(limit, len(free))
    if free:
        assert asked == [*free[: len(asked) - 1], free[-1]]
    assert all(one.hours <= per_run for one in found)
    for one, following in pairwise(found):
        assert one.end < following.start or one.hours == per_run


def test_only_the_hours_that_are_open_are_requested() -> None:
    span = Window(START, START + 5 * HOUR)
    hours = overlay([ended(0, 2), ended(2, 3, FAILED), ended(4, 5)])
    assert requests(hours.open_hours(span), set(), 100) == [
        Window(START + 2 * HOUR, START + 4 * HOUR)
    ]


def test_a_first_load_is_split_into_runs_of_a_thousand_hours() -> None:
    span = Window(START, START + 2_500 * HOUR)
    found = requests(FactHours().open_hours(span), set(), 2_500)
    assert [request.hours for request in found] == [1_000, 1_000, 500]


@given(
    bad=st.sets(st.integers(0, 999), max_size=3),
    stopped=st.sets(st.integers(0, 999), max_size=2),
)
def test_a_bad_hour_ends_up_alone_and_its_neighbours_succeed(
    bad: set[int], stopped: set[int]
) -> None:
    """Runs over a bad hour fail; between ticks a new hour succeeds."""
    span = Window(START, START + 1_000 * HOUR)
    wrong = {START + index * HOUR for index in bad}
    attempts = [ended(index, index + 1, CANCELLED) for index in stopped]
    cancelled = {attempt.window.start for attempt in attempts}
    runs = 0
    for _ in range(25):
        hours = overlay(attempts)
        wanted = hours.open_hours(span)
        assert cancelled.isdisjoint(wanted)
        for one in requests(wanted, set(), 1_000, failed=hours.failed_windows()):
            failed = not wrong.isdisjoint(one.starts())
            index = (one.start - START) // HOUR
            attempts.append(ended(index, index + one.hours, FAILED if failed else SUCCESS))
            runs += 1
        attempts.append(ended(1_000, 1_001))
    hours = overlay(attempts)
    assert hours.open_hours(span) == wrong - cancelled
    assert hours.done(span.starts()) == {*span.starts()} - wrong - cancelled
    windows = hours.failed_windows()
    for hour in wrong - cancelled:
        assert windows[hour].hours == 1
    # A window with a bad hour is halved at most ten times; then the hour runs alone at every tick.
    assert runs <= 5 + len(bad) * (2 * 10 + 25)


@given(st.integers(3, 30))
def test_if_everything_fails_the_number_of_runs_does_not_grow(ticks: int) -> None:
    span = Window(START, START + 1_000 * HOUR)
    attempts: list[PastAttempt] = []
    for tick in range(ticks):
        hours = overlay(attempts)
        found = requests(hours.open_hours(span), set(), 1_000, failed=hours.failed_windows())
        for one in found:
            index = (one.start - START) // HOUR
            attempts.append(ended(index, index + one.hours, FAILED))
        if tick >= 2:
            assert found == [span]
