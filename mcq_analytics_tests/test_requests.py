"""Which hours become runs, over generated sets of wanted, busy and failed hours."""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from mcq_analytics.definitions.requests import requests
from mcq_analytics.model.facts import FACTS
from mcq_analytics.model.windows import HOUR, Window
from mcq_analytics.postgres.fact_tables import CANCELLED, FAILED, SUCCESS
from mcq_analytics.postgres.hours import FactHours
from mcq_analytics.postgres.metadata import PastAttempt
from mcq_analytics_tests.overlay import START, ended, overlay

NAMES = [fact.name for fact in FACTS]
HOURS = st.sets(st.integers(0, 30).map(lambda index: START + index * HOUR))


@given(
    wanted=st.fixed_dictionaries(dict.fromkeys(NAMES, HOURS)),
    busy=st.fixed_dictionaries(dict.fromkeys(NAMES, HOURS)),
    limit=st.integers(1, 40),
)
def test_every_wanted_hour_that_is_not_in_progress_is_requested_once(
    wanted: dict[str, set[datetime]], busy: dict[str, set[datetime]], limit: int
) -> None:
    found = requests(wanted, busy, limit)
    hours = [
        (fact, hour.start) for one in found for fact in one.facts for hour in one.window.chunks(1)
    ]
    assert len(hours) == len(set(hours))
    free = {(fact, hour) for fact in NAMES for hour in wanted[fact] - busy[fact]}
    assert set(hours) <= free
    by_hour = sorted({hour for _, hour in free})
    asked = sorted({hour for _, hour in hours})
    assert len(asked) == min(limit, len(by_hour))
    assert set(hours) == {(fact, hour) for fact, hour in free if hour in asked}
    if by_hour:
        assert asked[-1] == by_hour[-1]
        assert asked[:-1] == by_hour[: len(asked) - 1]
    for one, following in pairwise(found):
        assert one.window.end < following.window.start or one.facts != following.facts


def test_only_the_fact_that_is_open_is_requested() -> None:
    span = Window(START, START + 5 * HOUR)
    wanted = {name: overlay([ended(0, 5)]).open_hours(span) for name in NAMES}
    funnel = overlay([ended(0, 2), ended(2, 3, FAILED), ended(4, 5)])
    [request] = requests({**wanted, "test_funnel_fact": funnel.open_hours(span)}, {}, 100)
    assert request.facts == ("test_funnel_fact",)
    assert request.window == Window(START + 2 * HOUR, START + 4 * HOUR)


def test_a_first_load_is_split_into_runs_of_a_thousand_hours() -> None:
    span = Window(START, START + 2_500 * HOUR)
    found = requests({name: FactHours().open_hours(span) for name in NAMES}, {}, 2_500)
    assert [request.window.hours for request in found] == [1_000, 1_000, 500]


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
        for one in requests({"fact": wanted}, {}, 1_000, failed={"fact": hours.failed_windows()}):
            failed = not wrong.isdisjoint(one.window.starts())
            index = (one.window.start - START) // HOUR
            attempts.append(ended(index, index + one.window.hours, FAILED if failed else SUCCESS))
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
        found = requests(
            {"fact": hours.open_hours(span)},
            {},
            1_000,
            failed={"fact": hours.failed_windows()},
        )
        for one in found:
            index = (one.window.start - START) // HOUR
            attempts.append(ended(index, index + one.window.hours, FAILED))
        if tick >= 2:
            assert [one.window for one in found] == [span]
