"""The shape of a generated sample, measured over two months of 2,000 students."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from mcq_analytics.sample import generator
from mcq_analytics_tests.sample_tables import (
    HOURS,
    PAIR,
    TIMES,
    null_share,
    repeats,
    sample,
    seconds,
    values,
)

STUDENTS = 2_000


@pytest.fixture(scope="module")
def months() -> generator.SampleTables:
    return sample(students=STUDENTS, hours=HOURS)


@pytest.fixture(scope="module")
def sittings(months: generator.SampleTables) -> pa.Table:
    """One row per sitting, by student and time, with the times of its first and last answer."""
    answers = months.answers.filter(pc.is_valid(months.answers["session_id"]))
    grouped = answers.group_by("session_id").aggregate(
        [(name, bound) for name in (*PAIR, "timestamp") for bound in ("min", "max")]
    )
    return grouped.sort_by([("student_id_min", "ascending"), ("timestamp_min", "ascending")])


def sitting_answers(months: generator.SampleTables) -> pa.Table:
    """Return the answers that have a session, by session and time."""
    answers = months.answers.filter(pc.is_valid(months.answers["session_id"]))
    return answers.sort_by([("session_id", "ascending"), ("answer_id", "ascending")])


def test_times_have_microseconds(months: generator.SampleTables) -> None:
    for table, column in TIMES:
        times = getattr(months, table)[column].drop_null()
        odd = pc.sum(pc.not_equal(pc.microsecond(times), 0)).as_py()
        assert odd > 0.99 * len(times)


def test_answers_come_in_order_of_time_with_rising_ids(months: generator.SampleTables) -> None:
    assert (np.diff(seconds(months.answers, "timestamp")) >= 0).all()
    count = months.answers.num_rows
    assert (values(months.answers, "answer_id") == np.arange(1, count + 1)).all()


def test_ids_of_questions_and_sessions_are_unique(months: generator.SampleTables) -> None:
    for table, column in ((months.questions, "question_id"), (months.sessions, "session_id")):
        assert table[column].null_count == 0
        assert len(pc.unique(table[column])) == table.num_rows


def test_answers_per_student_are_heavy_tailed(months: generator.SampleTables) -> None:
    counts = np.bincount(values(months.answers, "student_id"), minlength=STUDENTS + 1)[1:]
    assert counts.min() >= 1
    assert 55 <= np.median(counts) <= 87
    assert 2_000 <= np.quantile(counts, 0.9) <= 3_400


def test_answers_of_a_sitting_are_seconds_apart(months: generator.SampleTables) -> None:
    answers = sitting_answers(months)
    same = np.diff(values(answers, "session_id")) == 0
    gaps = np.diff(seconds(answers, "timestamp"))[same]
    assert gaps.min() >= 0
    assert 18 <= np.median(gaps) <= 22
    assert np.quantile(gaps, 0.99) < 300


def test_a_sitting_has_one_student_and_one_test(sittings: pa.Table) -> None:
    for column in PAIR:
        assert sittings[f"{column}_min"] == sittings[f"{column}_max"]


def test_sittings_of_a_student_are_hours_to_days_apart(sittings: pa.Table) -> None:
    begin, end = seconds(sittings, "timestamp_min"), seconds(sittings, "timestamp_max")
    same = np.diff(values(sittings, "student_id_min")) == 0
    hours = (begin[1:] - end[:-1])[same] / 3600
    assert hours.min() > 0
    assert 2 <= np.median(hours) <= 24
    assert np.quantile(hours, 0.95) > 24


def test_tests_have_1_to_40_questions(months: generator.SampleTables) -> None:
    pairs = months.answers.group_by(["test_id", "question_id"]).aggregate([])
    sizes = repeats(pairs, ["test_id"])
    assert sizes.min() >= 1
    assert sizes.max() <= 40
    assert 15 <= np.median(sizes) <= 26


def test_tests_are_open_for_about_two_weeks(months: generator.SampleTables) -> None:
    spans = months.answers.group_by("test_id").aggregate([("timestamp", "min_max")])
    bounds = spans["timestamp_min_max"].combine_chunks()
    days = (
        pc.microseconds_between(bounds.field("min"), bounds.field("max")).to_numpy() / 86_400 / 1e6
    )
    assert 10 <= np.median(days) <= 15
    assert np.quantile(days, 0.95) < 21


def test_the_number_of_tests_grows_with_the_span_and_their_size_does_not(
    months: generator.SampleTables,
) -> None:
    # A student's answers do not grow with the span, so the number of tests grows more slowly.
    spans = [sample(students=STUDENTS, hours=hours).answers for hours in (48, HOURS // 2)]
    spans.append(months.answers)
    tests = [len(pc.unique(answers["test_id"])) for answers in spans]
    assert 2 * tests[0] < tests[1]
    assert 1.1 * tests[1] < tests[2]
    takers = [repeats(answers.group_by(PAIR).aggregate([]), ["test_id"]) for answers in spans]
    assert 30 <= np.median(takers[-1]) <= 300
    assert np.median(takers[2]) == pytest.approx(np.median(takers[1]), rel=0.25)
    assert max(it.max() for it in takers) < 400


def test_two_percent_of_questions_are_shared_by_two_tests(months: generator.SampleTables) -> None:
    pairs = months.answers.group_by(["test_id", "question_id"]).aggregate([])
    tests = repeats(pairs, ["question_id"])
    assert (tests == 2).mean() == pytest.approx(0.02, abs=0.005)
    assert (tests > 2).mean() < 0.002


def test_options_are_chosen_equally_often_and_some_are_cleared(
    months: generator.SampleTables,
) -> None:
    options = months.answers["submitted_option"]
    assert null_share(months.answers, "submitted_option") == pytest.approx(0.014, abs=0.001)
    counts = {pair["values"]: pair["counts"] for pair in pc.value_counts(options).to_pylist()}
    assert set(counts) == {"A", "B", "C", "D", None}
    for option in "ABCD":
        assert counts[option] / len(options) == pytest.approx(0.25, abs=0.02)


def test_71_percent_of_final_answers_are_correct(months: generator.SampleTables) -> None:
    final = months.answers.group_by([*PAIR, "question_id"], use_threads=False).aggregate(
        [("submitted_option", "last", pc.ScalarAggregateOptions(skip_nulls=False))]
    )
    keyed = final.join(
        months.questions.filter(pc.is_valid(months.questions["correct_option"])),
        "question_id",
        join_type="inner",
    )
    correct = pc.equal(keyed["submitted_option_last"], keyed["correct_option"])
    assert pc.mean(pc.fill_null(correct, False)).as_py() == pytest.approx(0.71, abs=0.01)


def test_some_questions_have_no_row_or_no_key(months: generator.SampleTables) -> None:
    asked = pc.unique(months.answers["question_id"])
    there = pc.mean(pc.is_in(asked, value_set=months.questions["question_id"])).as_py()
    assert 1 - there == pytest.approx(0.01, abs=0.004)
    assert null_share(months.questions, "correct_option") == pytest.approx(0.01, abs=0.004)


def test_ten_percent_of_questions_are_answered_again_in_the_sitting(
    months: generator.SampleTables,
) -> None:
    answers = sitting_answers(months)
    times = repeats(answers, ["session_id", "question_id"])
    assert (times == 2).mean() == pytest.approx(0.1, abs=0.015)
    assert (times > 2).mean() < 0.001


def test_a_second_answer_in_a_sitting_has_another_option(months: generator.SampleTables) -> None:
    given = months.answers.filter(
        pc.and_(
            pc.is_valid(months.answers["session_id"]),
            pc.is_valid(months.answers["submitted_option"]),
        )
    )
    options = given.group_by(["session_id", "question_id"]).aggregate(
        [("submitted_option", "count"), ("submitted_option", "count_distinct")]
    )
    twice = options.filter(pc.equal(options["submitted_option_count"], 2))
    changed = values(twice, "submitted_option_count_distinct") == 2
    assert changed.mean() > 0.99


def test_twenty_percent_of_student_tests_are_retaken_hours_to_days_later(
    sittings: pa.Table,
) -> None:
    times = repeats(sittings, ["student_id_min", "test_id_min"])
    assert (times > 1).mean() == pytest.approx(0.2, abs=0.03)
    ordered = sittings.sort_by(
        [(name, "ascending") for name in ("student_id_min", "test_id_min", "timestamp_min")]
    )
    same = (np.diff(values(ordered, "student_id_min")) == 0) & (
        np.diff(values(ordered, "test_id_min")) == 0
    )
    begin, end = seconds(ordered, "timestamp_min"), seconds(ordered, "timestamp_max")
    hours = (begin[1:] - end[:-1])[same] / 3600
    assert 4 <= np.median(hours) <= 72


def test_one_percent_of_answers_come_after_the_expiry_of_their_session(
    months: generator.SampleTables,
) -> None:
    joined = months.answers.join(months.sessions, "session_id")
    late = pc.sum(pc.greater(joined["timestamp"], joined["expiry_time"])).as_py()
    assert late / months.answers.num_rows == pytest.approx(0.01, abs=0.003)


def test_sessions_expire_minutes_to_an_hour_after_their_last_answer(
    months: generator.SampleTables, sittings: pa.Table
) -> None:
    ended = sittings.select(["session_id", "timestamp_max"])
    joined = months.sessions.join(ended, "session_id", join_type="inner")
    joined = joined.filter(pc.is_valid(joined["expiry_time"]))
    minutes = (seconds(joined, "expiry_time") - seconds(joined, "timestamp_max")) / 60
    in_time = minutes[minutes >= 0]
    assert in_time.max() <= 60.01
    assert np.quantile(in_time, 0.01) >= 4
    assert (minutes < 0).mean() == pytest.approx(0.04, abs=0.01)


def test_some_sessions_never_expire_or_have_no_row_and_some_answers_have_no_session(
    months: generator.SampleTables, sittings: pa.Table
) -> None:
    assert null_share(months.sessions, "expiry_time") == pytest.approx(0.02, abs=0.003)
    there = pc.is_in(sittings["session_id"], value_set=months.sessions["session_id"])
    assert 1 - pc.mean(there).as_py() == pytest.approx(0.01, abs=0.002)
    assert null_share(months.answers, "session_id") == pytest.approx(0.001, abs=0.0003)


def test_92_percent_of_sittings_are_submitted(
    months: generator.SampleTables, sittings: pa.Table
) -> None:
    # One percent more comes from students without an answer.
    share = months.submissions.num_rows / sittings.num_rows
    assert share == pytest.approx(0.92 * 1.01, abs=0.01)


def test_a_sitting_is_submitted_seconds_after_its_last_answer(
    months: generator.SampleTables, sittings: pa.Table
) -> None:
    ended = sittings.select(["student_id_min", "test_id_min", "timestamp_max"])
    joined = months.submissions.join(ended, PAIR, ["student_id_min", "test_id_min"], "inner")
    after = seconds(joined, "submit_time") - seconds(joined, "timestamp_max")
    after = after[(after > 0) & (after < 600)]
    assert after.size > 0.95 * months.submissions.num_rows
    assert 10 <= np.median(after) <= 20


def test_submissions_have_the_statuses_of_real_logs(months: generator.SampleTables) -> None:
    statuses = pc.value_counts(months.submissions["completion_status"]).to_pylist()
    count = months.submissions.num_rows
    shares = {pair["values"]: pair["counts"] / count for pair in statuses}
    assert set(shares) == {"completed", "Completed", "COMPLETED", "timeout", "skipped", None}
    completed = shares["completed"] + shares["Completed"] + shares["COMPLETED"]
    assert completed == pytest.approx(0.8, abs=0.02)
    assert shares["completed"] > 0.7
    assert 0 < shares[None] < 0.01


def test_one_percent_of_submissions_come_from_students_without_an_answer(
    months: generator.SampleTables,
) -> None:
    answered = months.answers.group_by(PAIR).aggregate([])
    without = months.submissions.join(answered, PAIR, join_type="left anti")
    assert without.num_rows / months.submissions.num_rows == pytest.approx(0.01, abs=0.002)
