"""When incidents open and end, for generated sequences of statuses; and the texts of alerts."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone

from hypothesis import given, settings
from hypothesis import strategies as st

from mcq_analytics.alerting.incidents import GROWS_WITHIN, Change, Seen, decide
from mcq_analytics.alerting.outbox import (
    accepted,
    after_tick,
    next_message,
    paused,
    refused,
    with_message,
    without_expired_pause,
)
from mcq_analytics.alerting.state import BACKFILL, CHECK, LIVE, Incident, Message, State
from mcq_analytics.alerting.texts import FailedRun, opening_text, recovery_text
from mcq_analytics.model.windows import HOUR, Window, ranges

START = datetime(2024, 1, 1, tzinfo=timezone.utc)
NOON = START + 12 * HOUR
FACTS = ("summary", "funnel")

Statuses = dict[tuple[str, int], str]


def at(*numbers: int) -> frozenset[datetime]:
    return frozenset(START + number * HOUR for number in numbers)


def live(**hours: frozenset[datetime]) -> Seen:
    return Seen({LIVE: hours, BACKFILL: {}}, {})


def as_seen(statuses: Statuses) -> Seen:
    def of(status: str) -> dict[str, set[datetime]]:
        return {
            fact: {
                START + hour * HOUR
                for (of, hour), now in statuses.items()
                if (of, now) == (fact, status)
            }
            for fact in FACTS
        }

    return Seen({LIVE: of(LIVE), BACKFILL: of(BACKFILL)}, of("unsettled"))


steps = st.lists(
    st.tuples(
        st.dictionaries(
            st.tuples(st.sampled_from(FACTS), st.integers(0, 6)),
            st.sampled_from(["good", "good", LIVE, LIVE, BACKFILL, "unsettled"]),
            max_size=6,
        ),
        st.sampled_from([timedelta(seconds=30), HOUR, GROWS_WITHIN]),
        st.booleans(),
    ),
    max_size=25,
)


def is_good(seen: Seen, incident: Incident) -> bool:
    bad = [seen.unsettled, *seen.failed.values()]
    return all(
        hours.isdisjoint(some.get(fact, frozenset()))
        for fact, hours in incident.hours.items()
        for some in bad
    )


@settings(max_examples=300, deadline=None)
@given(steps=steps, after=st.integers(1, 3))
def test_incidents_open_after_consecutive_failures_and_are_over_once_all_hours_are_good(
    steps: list[tuple[Statuses, timedelta, bool]], after: int
) -> None:
    state, now = State(), NOON
    statuses: Statuses = {}
    settled: Statuses = {}
    opened: list[Incident] = []
    recovered: list[Incident] = []
    for changed, passed, restarted in steps:
        statuses |= changed
        now += passed
        seen = as_seen(statuses)
        # What is unsettled is what it was.
        settled |= {where: what for where, what in changed.items() if what != "unsettled"}
        was = as_seen(settled)
        before = state
        if restarted:
            state = State.from_cursor(state.as_cursor())
            assert state == before
        state, change = decide(state, seen, now, after)
        long_rows = {
            (kind, fact, hour.start)
            for kind in (LIVE, BACKFILL)
            for fact in FACTS
            for window in ranges(seen.failed[kind].get(fact, ()))
            if window.hours >= after
            for hour in window.chunks(1)
        }
        for incident in change.opened:
            for fact, hours in incident.hours.items():
                assert {(incident.kind, fact, hour) for hour in hours} <= long_rows
        assert len({incident.kind for incident in change.opened}) == len(change.opened)
        for incident in change.recovered:
            assert incident in before.incidents
            assert is_good(was, incident)
        assert not any(is_good(was, incident) for incident in state.incidents)
        known = {
            (fact, hour)
            for incident in state.incidents
            for fact, hours in incident.hours.items()
            for hour in hours
        }
        assert {(fact, hour) for _, fact, hour in long_rows} <= known
        # The next tick does not announce the same again.
        assert decide(state, seen, now, after) == (state, Change())
        opened += change.opened
        recovered += change.recovered
    assert len(opened) == len(recovered) + len(state.incidents)
    state, change = decide(state, Seen({}, {}), now, after)
    assert state.incidents == ()


def test_an_incident_that_grows_hour_by_hour_over_all_facts_is_one() -> None:
    state, told = State(), Change()
    for last in range(5):
        failed = at(*range(last + 1))
        state, told = decide(
            state, live(summary=failed, funnel=failed), NOON + last * HOUR, after=2
        )
        assert len(told.opened) == (1 if last == 1 else 0)
    [incident] = state.incidents
    assert incident.hours == {"summary": at(0, 1, 2, 3, 4), "funnel": at(0, 1, 2, 3, 4)}
    state, told = decide(state, live(summary=at(4)), NOON + 6 * HOUR, after=2)
    assert told == Change()
    state, told = decide(state, live(), NOON + 7 * HOUR, after=2)
    assert told.recovered == (replace(incident, bad={"summary": at(4), "funnel": at()}),)
    assert state == State()


def test_hours_about_to_be_retried_neither_open_nor_end_an_incident() -> None:
    tried = Seen({LIVE: {"summary": at(1)}, BACKFILL: {}}, {"summary": at(2)})
    assert decide(State(), tried, NOON, after=2) == (State(), Change())
    state, _ = decide(State(), live(summary=at(1, 2)), NOON, after=2)
    assert decide(state, tried, NOON, after=2) == (state, Change())
    assert decide(state, Seen({}, {"summary": at(1, 2)}), NOON, after=2) == (state, Change())


def test_good_hours_that_are_unsettled_again_do_not_keep_an_incident_open() -> None:
    """As after a run over them that was cancelled or gave up waiting."""
    state, _ = decide(State(), live(summary=at(1, 2)), NOON, after=2)
    state, told = decide(state, live(summary=at(2)), NOON, after=2)
    state = State.from_cursor(state.as_cursor())
    state, told = decide(state, Seen({}, {"summary": at(1, 2)}), NOON, after=2)
    assert told == Change()
    state, told = decide(state, Seen({}, {"summary": at(1)}), NOON, after=2)
    assert (state, len(told.recovered)) == (State(), 1)


def test_a_failed_hour_that_is_then_found_wrong_is_announced_again() -> None:
    state, _ = decide(State(), live(summary=at(1, 2)), NOON, after=2)
    state, told = decide(state, Seen({CHECK: {"summary": at(1)}}, {}), NOON, after=2)
    assert [(one.kind, one.hours["summary"]) for one in told.opened] == [(CHECK, at(1))]
    state, told = decide(state, live(), NOON, after=2)
    assert {one.kind for one in told.recovered} == {LIVE, CHECK}


def test_hours_that_keep_failing_do_not_hide_a_failure_a_day_later() -> None:
    state, _ = decide(State(), live(summary=at(1, 2)), NOON, after=2)
    later = live(summary=at(1, 2, 20, 21))
    state, told = decide(state, later, NOON + 24 * HOUR, after=2)
    [incident] = told.opened
    assert incident.hours == {"summary": at(20, 21)}


def test_a_backfill_and_live_hours_are_two_incidents() -> None:
    seen = Seen({LIVE: {"summary": at(8, 9)}, BACKFILL: {"summary": at(1, 2)}}, {})
    _, told = decide(State(), seen, NOON, after=2)
    assert [(one.kind, one.hours["summary"]) for one in told.opened] == [
        (LIVE, at(8, 9)),
        (BACKFILL, at(1, 2)),
    ]


def test_a_fact_that_is_wrong_is_an_incident_at_once() -> None:
    seen = Seen({LIVE: {"summary": at(8)}, CHECK: {"summary": at(1)}}, {})
    state, told = decide(State(), seen, NOON, after=2)
    assert [(one.kind, one.hours["summary"]) for one in told.opened] == [(CHECK, at(1))]
    state, told = decide(state, live(summary=at(8)), NOON, after=2)
    assert [one.kind for one in told.recovered] == [CHECK]


def test_a_message_waits_until_it_is_accepted_or_slacks_pause_is_over() -> None:
    state = with_message(with_message(State(), "first"), "second")
    state = after_tick(paused(state, NOON, retry_after=120))
    state = State.from_cursor(state.as_cursor())
    until = NOON + timedelta(seconds=120)
    assert without_expired_pause(state, NOON + timedelta(seconds=119)).not_before == until
    state = without_expired_pause(state, until)
    assert state.not_before is None
    first, second = state.outbox
    assert (first, second) == (Message("first", trials=1), Message("second", trials=1))
    state = after_tick(refused(state, first))
    assert state.outbox[0] == Message("first", trials=2, refusals=1)
    state = State.from_cursor(state.as_cursor())
    state = accepted(state, Message("first", trials=2, refusals=1))
    assert state.outbox == (Message("second", trials=2),)
    assert accepted(state, state.outbox[0]) == State()


def test_messages_keep_their_order_but_after_a_refusal_the_least_refused_comes_next() -> None:
    waiting = [Message("a", refusals=2), Message("b", refusals=2), Message("c"), Message("d")]
    assert next_message(waiting, last_refused=False).text == "a"
    assert next_message(waiting, last_refused=True).text == "c"
    assert next_message(waiting[:2], last_refused=True).text == "a"


def test_no_pause_is_longer_than_an_hour() -> None:
    state = paused(with_message(State(), "first"), NOON, retry_after=1e12)
    assert without_expired_pause(state, NOON + HOUR).not_before is None


def test_messages_from_the_cursor_of_an_older_version_are_still_sent() -> None:
    older = '{"incidents": [], "outbox": [["first", 2]], "not_before": null}'
    assert State.from_cursor(older).outbox == (Message("first", trials=2),)


def test_a_message_names_facts_hours_and_error_with_links() -> None:
    incident = Incident(LIVE, {"funnel": at(1, 2), "summary": at(1, 2)}, NOON)
    run = FailedRun("abc", "no such table", incident.hours, NOON)
    text = opening_text(incident, [run], "http://dagster.example")
    assert text.splitlines() == [
        "funnel, summary failed in hourly runs, on the final attempt",
        f"hours: {Window(START + HOUR, START + 3 * HOUR)} (2 in all)",
        "last error: no such table",
        "run: http://dagster.example/runs/abc",
        "hours of funnel: http://dagster.example/assets/funnel?view=partitions",
        "hours of summary: http://dagster.example/assets/summary?view=partitions",
    ]
    uneven = Incident(BACKFILL, {"funnel": at(*range(0, 40, 2)), "summary": at(1, 2)}, NOON)
    lines = recovery_text(uneven).splitlines()
    assert lines[0] == "funnel, summary recovered: all failed hours of the backfill are good"
    assert lines[1].endswith("and 15 more ranges (20 in all)")
    assert lines[2].startswith("hours of summary: ")


def test_each_cause_appears_once_latest_first_with_its_hours_and_latest_run() -> None:
    incident = Incident(LIVE, {"funnel": at(1, 2, 3), "summary": at(1)}, NOON)
    runs = [
        FailedRun(
            "c", f"funnel over {Window(START, NOON)}: lost", {"funnel": at(3)}, NOON - 2 * HOUR
        ),
        FailedRun("b", "funnel over [1, 2): lost", {"funnel": at(2)}, NOON - HOUR, by_hand=True),
        FailedRun(
            "a", "the disk is full", {"funnel": at(1), "summary": at(1)}, NOON, by_hand=False
        ),
    ]
    lines = opening_text(incident, runs, "http://d").splitlines()
    assert lines[3:-2] == [
        "last error: the disk is full",
        "run: http://d/runs/a",
        f"  its hours of funnel, summary: {Window(START + HOUR, START + 2 * HOUR)} (1 in all)",
        "earlier error: funnel over [1, 2): lost",
        "run by hand: http://d/runs/b",
        f"  its hours of funnel: {Window(START + 2 * HOUR, START + 4 * HOUR)} (2 in all)",
    ]


def test_a_message_stays_short_however_many_and_long_its_causes_are() -> None:
    incident = Incident(LIVE, {"funnel": at(*range(90))}, NOON)
    runs = [
        FailedRun(str(one), f"{one} {'x' * 9_999}", {"funnel": at(one)}, START + one * HOUR)
        for one in range(90)
    ]
    text = opening_text(incident, runs, "http://d", older_runs=1_200)
    errors = [line for line in text.splitlines() if " error: " in line]
    assert [line.split()[2] for line in errors] == ["89", "88", "87", "86", "85"]
    assert {"and 85 more errors", "and those of 1,200 older runs"} <= set(text.splitlines())
    assert len(text) < 10_000
