"""When incidents open and end, for generated sequences of statuses; and the texts of alerts."""

from __future__ import annotations

import json
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
from mcq_analytics.alerting.state import ALL_FACTS, BACKFILL, CHECK, LIVE, Incident, Message, State
from mcq_analytics.alerting.texts import FailedRun, opening_text, recovery_text
from mcq_analytics.model.windows import HOUR, Window, ranges

START = datetime(2024, 1, 1, tzinfo=timezone.utc)
NOON = START + 12 * HOUR
FACTS = ("summary", "funnel")

Statuses = dict[int, str]
Wrong = dict[tuple[str, int], bool]


def at(*numbers: int) -> frozenset[datetime]:
    return frozenset(START + number * HOUR for number in numbers)


def live(*numbers: int) -> Seen:
    return Seen({LIVE: {ALL_FACTS: at(*numbers)}, BACKFILL: {}}, frozenset())


def as_seen(statuses: Statuses, wrong: Wrong) -> Seen:
    def of(status: str) -> frozenset[datetime]:
        return at(*(hour for hour, now in statuses.items() if now == status))

    by_fact = {
        fact: at(*(hour for (of, hour), is_wrong in wrong.items() if is_wrong and of == fact))
        for fact in FACTS
    }
    failed = {LIVE: {ALL_FACTS: of(LIVE)}, BACKFILL: {ALL_FACTS: of(BACKFILL)}, CHECK: by_fact}
    return Seen(failed, of("unsettled"))


steps = st.lists(
    st.tuples(
        st.dictionaries(
            st.integers(0, 6),
            st.sampled_from(["good", "good", LIVE, LIVE, BACKFILL, "unsettled"]),
            max_size=4,
        ),
        st.dictionaries(
            st.tuples(st.sampled_from(FACTS), st.integers(0, 6)),
            st.sampled_from([True, False, False]),
            max_size=3,
        ),
        st.sampled_from([timedelta(seconds=30), HOUR, GROWS_WITHIN]),
        st.booleans(),
    ),
    max_size=25,
)


def is_good(seen: Seen, incident: Incident) -> bool:
    """Whether no run over the hours failed, and no check found their facts wrong."""
    return all(
        hours.isdisjoint(some)
        for fact, hours in incident.hours.items()
        for by_fact in seen.failed.values()
        for name, some in by_fact.items()
        if name in (fact, ALL_FACTS) or fact == ALL_FACTS
    )


@settings(max_examples=300, deadline=None)
@given(steps=steps, after=st.integers(1, 3))
def test_incidents_open_after_consecutive_failures_and_are_over_once_all_hours_are_good(
    steps: list[tuple[Statuses, Wrong, timedelta, bool]], after: int
) -> None:
    state, now = State(), NOON
    statuses: Statuses = {}
    settled: Statuses = {}
    wrong: Wrong = {}
    was_wrong: Wrong = {}
    opened: list[Incident] = []
    recovered: list[Incident] = []
    for changed, checked, passed, restarted in steps:
        statuses |= changed
        wrong |= checked
        now += passed
        seen = as_seen(statuses, wrong)
        # What is unsettled is what it was.
        settled |= {where: what for where, what in changed.items() if what != "unsettled"}
        was_wrong = {
            (fact, hour): is_wrong
            or (was_wrong.get((fact, hour), False) and statuses.get(hour) == "unsettled")
            for (fact, hour), is_wrong in wrong.items()
        }
        was = as_seen(settled, was_wrong)
        before = state
        if restarted:
            state = State.from_cursor(state.as_cursor())
            assert state == before
        state, change = decide(state, seen, now, after)
        long_rows = {
            (kind, fact, hour)
            for kind, by_fact in seen.failed.items()
            for fact, failed in by_fact.items()
            for window in ranges(failed)
            if window.hours >= (1 if kind == CHECK else after)
            for hour in window.starts()
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
    state, change = decide(state, Seen({}, frozenset()), now, after)
    assert state.incidents == ()


def test_an_incident_that_grows_hour_by_hour_is_one() -> None:
    state, told = State(), Change()
    for last in range(5):
        state, told = decide(state, live(*range(last + 1)), NOON + last * HOUR, after=2)
        assert len(told.opened) == (1 if last == 1 else 0)
    [incident] = state.incidents
    assert incident.hours == {ALL_FACTS: at(0, 1, 2, 3, 4)}
    state, told = decide(state, live(4), NOON + 6 * HOUR, after=2)
    assert told == Change()
    state, told = decide(state, live(), NOON + 7 * HOUR, after=2)
    assert told.recovered == (replace(incident, bad={ALL_FACTS: at(4)}),)
    assert state == State()


def test_an_incident_of_wrong_facts_grows_over_all_facts() -> None:
    state, told = State(), Change()
    for last, fact in enumerate(["summary", "funnel", "summary"]):
        wrong = {"summary": at(*range(last + 1)), **({fact: at(last)} if fact == "funnel" else {})}
        seen = Seen({CHECK: wrong}, frozenset())
        state, told = decide(state, seen, NOON + last * HOUR, after=2)
        assert len(told.opened) == (1 if last == 0 else 0)
    [incident] = state.incidents
    assert incident.hours == {"summary": at(0, 1, 2), "funnel": at(1)}
    assert incident.bad == {"summary": at(0, 1, 2), "funnel": at()}


def test_hours_about_to_be_retried_neither_open_nor_end_an_incident() -> None:
    tried = Seen({LIVE: {ALL_FACTS: at(1)}, BACKFILL: {}}, at(2))
    assert decide(State(), tried, NOON, after=2) == (State(), Change())
    state, _ = decide(State(), live(1, 2), NOON, after=2)
    assert decide(state, tried, NOON, after=2) == (state, Change())
    assert decide(state, Seen({}, at(1, 2)), NOON, after=2) == (state, Change())


def test_good_hours_that_are_unsettled_again_do_not_keep_an_incident_open() -> None:
    """As after a run over them that was cancelled or gave up waiting."""
    state, _ = decide(State(), live(1, 2), NOON, after=2)
    state, told = decide(state, live(2), NOON, after=2)
    state = State.from_cursor(state.as_cursor())
    state, told = decide(state, Seen({}, at(1, 2)), NOON, after=2)
    assert told == Change()
    state, told = decide(state, Seen({}, at(1)), NOON, after=2)
    assert (state, len(told.recovered)) == (State(), 1)


def test_a_failed_hour_that_is_then_found_wrong_is_announced_again() -> None:
    state, _ = decide(State(), live(1, 2), NOON, after=2)
    wrong = Seen({CHECK: {"summary": at(1)}}, frozenset())
    state, told = decide(state, wrong, NOON, after=2)
    assert [(one.kind, one.hours) for one in told.opened] == [(CHECK, {"summary": at(1)})]
    assert told.recovered == ()
    state, told = decide(state, live(), NOON, after=2)
    assert {one.kind for one in told.recovered} == {LIVE, CHECK}


def test_a_wrong_hour_that_then_fails_is_not_right_again() -> None:
    wrong = Seen({CHECK: {"summary": at(1), "funnel": at(2)}}, frozenset())
    state, _ = decide(State(), wrong, NOON, after=2)
    state, told = decide(state, live(1), NOON, after=2)
    assert told == Change()
    state, told = decide(state, live(3), NOON, after=2)
    assert [one.kind for one in told.recovered] == [CHECK]


def test_hours_that_keep_failing_do_not_hide_a_failure_a_day_later() -> None:
    state, _ = decide(State(), live(1, 2), NOON, after=2)
    state, told = decide(state, live(1, 2, 20, 21), NOON + 24 * HOUR, after=2)
    [incident] = told.opened
    assert incident.hours == {ALL_FACTS: at(20, 21)}


def test_a_backfill_and_live_hours_are_two_incidents() -> None:
    seen = Seen({LIVE: {ALL_FACTS: at(8, 9)}, BACKFILL: {ALL_FACTS: at(1, 2)}}, frozenset())
    _, told = decide(State(), seen, NOON, after=2)
    assert [(one.kind, one.hours[ALL_FACTS]) for one in told.opened] == [
        (LIVE, at(8, 9)),
        (BACKFILL, at(1, 2)),
    ]


def test_a_fact_that_is_wrong_is_an_incident_at_once() -> None:
    seen = Seen({LIVE: {ALL_FACTS: at(8)}, CHECK: {"summary": at(1)}}, frozenset())
    state, told = decide(State(), seen, NOON, after=2)
    assert [(one.kind, one.hours["summary"]) for one in told.opened] == [(CHECK, at(1))]
    state, told = decide(state, live(8), NOON, after=2)
    assert [one.kind for one in told.recovered] == [CHECK]


def test_incidents_of_an_older_version_which_kept_failed_runs_by_fact_go_on_as_one() -> None:
    hours = {"summary": [[START.isoformat(), 2]], "funnel": [[START.isoformat(), 3]]}
    older = [{"kind": kind, "grew_at": NOON.isoformat(), "hours": hours} for kind in (LIVE, CHECK)]
    state = State.from_cursor(json.dumps({"incidents": older, "outbox": [], "not_before": None}))
    runs, checks = state.incidents
    assert runs.hours == runs.bad == {ALL_FACTS: at(0, 1, 2)}
    assert checks.hours == {"summary": at(0, 1), "funnel": at(0, 1, 2)}
    failed = {LIVE: {ALL_FACTS: at(0, 1, 2)}, CHECK: checks.hours}
    assert decide(state, Seen(failed, frozenset()), NOON + 24 * HOUR, after=2) == (state, Change())


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


def test_a_message_about_runs_names_hours_and_error_once_with_links() -> None:
    incident = Incident(LIVE, {ALL_FACTS: at(1, 2)}, NOON)
    run = FailedRun("abc", "no such table", incident.hours, NOON)
    text = opening_text(incident, [run], "http://dagster.example")
    assert text.splitlines() == [
        "the facts failed in hourly runs, on the final attempt",
        f"hours: {Window(START + HOUR, START + 3 * HOUR)} (2 in all)",
        "last error: no such table",
        "run: http://dagster.example/runs/abc",
        "hours of the facts: http://dagster.example/assets/test_funnel_fact?view=partitions",
    ]
    many = Incident(BACKFILL, {ALL_FACTS: at(*range(0, 40, 2))}, NOON)
    title, hours = recovery_text(many).splitlines()
    assert title == "the facts recovered: all failed hours of the backfill are good"
    assert hours.endswith("and 15 more ranges (20 in all)")


def test_a_message_about_wrong_facts_names_each_with_its_hours() -> None:
    incident = Incident(CHECK, {"funnel": at(1, 2), "summary": at(1, 2)}, NOON)
    run = FailedRun("abc", "two rows differ", incident.hours, NOON)
    text = opening_text(incident, [run], "http://dagster.example")
    assert text.splitlines() == [
        "funnel, summary are wrong: checks of their rows failed",
        f"hours: {Window(START + HOUR, START + 3 * HOUR)} (2 in all)",
        "last error: two rows differ",
        "run: http://dagster.example/runs/abc",
        "hours of funnel: http://dagster.example/assets/funnel?view=partitions",
        "hours of summary: http://dagster.example/assets/summary?view=partitions",
    ]
    uneven = Incident(CHECK, {"funnel": at(*range(0, 40, 2)), "summary": at(1, 2)}, NOON)
    lines = recovery_text(uneven).splitlines()
    assert lines[0] == "funnel, summary recovered: the rows pass the checks again"
    assert lines[1].endswith("and 15 more ranges (20 in all)")
    assert lines[2].startswith("hours of summary: ")


def test_each_cause_appears_once_latest_first_with_its_hours_and_latest_run() -> None:
    incident = Incident(CHECK, {"funnel": at(1, 2, 3), "summary": at(1)}, NOON)
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


def test_runs_that_fail_for_the_same_reason_over_other_windows_are_one_cause() -> None:
    incident = Incident(LIVE, {ALL_FACTS: at(1, 2)}, NOON)
    runs = [
        FailedRun("a", f"the facts over {Window(START, NOON)}: lost", {ALL_FACTS: at(1)}, NOON),
        FailedRun(
            "b", "the facts over [1, 2): lost", {ALL_FACTS: at(2)}, NOON - HOUR, by_hand=True
        ),
    ]
    lines = opening_text(incident, runs, "http://d").splitlines()
    assert lines[2:-1] == [
        f"last error: the facts over {Window(START, NOON)}: lost",
        "run: http://d/runs/a",
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
