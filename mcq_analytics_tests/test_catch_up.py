"""No hour is missed, and late data heals by itself: what schedule and sensor request, and once.

The ticks are those of the schedule and the sensor of the definitions; what they request is run on
a real instance.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from itertools import pairwise

import pytest
from dagster import (
    AssetKey,
    DagsterInstance,
    DagsterRunStatus,
    Definitions,
    RunRequest,
)
from hypothesis import given
from hypothesis import strategies as st
from pyspark.sql import SparkSession
from sqlalchemy import text
from sqlalchemy.engine import URL

from mcq_analytics.compute.fingerprints import fingerprint_statement
from mcq_analytics.definitions.build import FACTS_JOB, build_definitions
from mcq_analytics.definitions.partitions import hour_of, partition_key, range_tags
from mcq_analytics.definitions.requests import requests
from mcq_analytics.definitions.sensors.kept_cursors import KeptCursor
from mcq_analytics.definitions.sensors.late_data import windows_to_compare
from mcq_analytics.errors import McqError
from mcq_analytics.model.facts import FACTS, FACTS_BY_NAME, IdType
from mcq_analytics.model.windows import HOUR, Window, last_closed_hour_end
from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.fact_tables import CANCELLED, FAILED, SUCCESS
from mcq_analytics.postgres.hours import FactHours
from mcq_analytics.postgres.inspection import inspect_base_tables
from mcq_analytics.postgres.metadata import PastAttempt
from mcq_analytics.quality import comparisons
from mcq_analytics.quality.corrections import Corrections, Key
from mcq_analytics.settings import load_settings
from mcq_analytics_tests.conftest import (
    MakeDatabase,
    create_database,
    drop_database,
    made_databases,
)
from mcq_analytics_tests.facts_of import execute, run_facts, scalar, wrong_rows
from mcq_analytics_tests.overlay import START, ended, overlay
from mcq_analytics_tests.ticks import schedule_tick, sensor_tick

NAMES = [fact.name for fact in FACTS]
HOURS = st.sets(st.integers(0, 30).map(lambda index: START + index * HOUR))


@given(
    wanted=st.fixed_dictionaries(dict.fromkeys(NAMES, HOURS)),
    busy=st.fixed_dictionaries(dict.fromkeys(NAMES, HOURS)),
    limit=st.integers(1, 40),
)
def test_each_wanted_hour_that_nothing_computes_is_requested_once(
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


def test_a_fact_alone_is_requested_where_just_that_one_is_open() -> None:
    span = Window(START, START + 5 * HOUR)
    wanted = {name: overlay([ended(0, 5)]).open_hours(span) for name in NAMES}
    funnel = overlay([ended(0, 2), ended(2, 3, FAILED), ended(4, 5)])
    [request] = requests({**wanted, "test_funnel_fact": funnel.open_hours(span)}, {}, 100)
    assert request.facts == ("test_funnel_fact",)
    assert request.window == Window(START + 2 * HOUR, START + 4 * HOUR)


def test_a_first_load_is_cut_into_runs_of_a_thousand_hours() -> None:
    span = Window(START, START + 2_500 * HOUR)
    found = requests({name: FactHours().open_hours(span) for name in NAMES}, {}, 2_500)
    assert [request.window.hours for request in found] == [1_000, 1_000, 500]


@given(
    bad=st.sets(st.integers(0, 999), max_size=3),
    stopped=st.sets(st.integers(0, 999), max_size=2),
)
def test_a_bad_hour_ends_alone_and_takes_no_neighbour_along(
    bad: set[int], stopped: set[int]
) -> None:
    """Runs over a bad hour fail; a good newest hour comes between, as each hour brings one."""
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
    # Each bad hour is halved ten times at most, and then runs by itself at each tick.
    assert runs <= 5 + len(bad) * (2 * 10 + 25)


@given(st.integers(3, 30))
def test_where_everything_fails_runs_do_not_become_more(ticks: int) -> None:
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


def test_the_past_is_compared_part_by_part_and_from_the_start_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MCQ_LOOKBACK_HOURS", "10")
    monkeypatch.setenv("MCQ_AUDIT_HOURS", "40")
    settings, span = load_settings(), Window(START, START + 100 * HOUR)
    recent = Window(START + 90 * HOUR, START + 100 * HOUR)
    until, seen = None, []
    for _ in range(4):
        last, part = windows_to_compare(span, settings, until)
        assert last == recent
        assert part is not None
        until = part.end
        seen.append(((part.start - START) // HOUR, (part.end - START) // HOUR))
    assert seen == [(0, 40), (40, 80), (80, 90), (0, 40)]
    young = Window(START, START + 5 * HOUR)
    assert windows_to_compare(young, settings, None) == (young, None)


class Platform:
    """A platform whose schedule and sensor tick when a test says so."""

    def __init__(self, database: Database, instance: DagsterInstance, first: datetime) -> None:
        self.database = database
        self.instance = instance
        self.first = first
        self.definitions: Definitions = build_definitions()
        self.cursor: str | None = None

    def schedule_tick(self) -> list[RunRequest]:
        return schedule_tick(self.definitions, self.instance)

    def sensor_tick(self) -> list[RunRequest]:
        data = sensor_tick(self.definitions, self.instance, "late_data_sensor", self.cursor)
        self.cursor = data.cursor
        for event in data.asset_events:
            self.instance.report_runless_asset_event(event)
        return list(data.run_requests or [])

    def carry_out(self, found: Iterable[RunRequest]) -> None:
        job = self.definitions.resolve_job_def(FACTS_JOB)
        for request in found:
            result = job.execute_in_process(
                instance=self.instance,
                tags=dict(request.tags),
                partition_key=request.partition_key,
                asset_selection=list(request.asset_selection or []),
            )
            assert result.success

    def hours(self, found: Iterable[RunRequest]) -> list[tuple[int, int]]:
        """Return of each request the first and the last hour, counted from the first partition."""
        bounds = []
        for request in found:
            first = request.partition_key or request.tags["dagster/asset_partition_range_start"]
            last = request.partition_key or request.tags["dagster/asset_partition_range_end"]
            bounds.append(
                ((hour_of(first) - self.first) // HOUR, (hour_of(last) - self.first) // HOUR)
            )
        return bounds

    def attempts(self, fact: str) -> list[int]:
        """Return how often each hour has succeeded for a fact, in order."""
        with self.database.engine().connect() as connection:
            return list(
                connection.execute(
                    text(
                        "SELECT count(*) FROM analytics.etl_metadata m, LATERAL generate_series("
                        "window_start, window_end - interval '1 hour', interval '1 hour') AS hour "
                        "WHERE status = 'success' AND pipeline_name = :fact "
                        "GROUP BY hour ORDER BY hour"
                    ),
                    {"fact": fact},
                ).scalars()
            )


@pytest.fixture(scope="module")
def origin() -> datetime:
    """The first hour of the platforms: forty hours of activity end two hours ago."""
    return last_closed_hour_end() - 42 * HOUR


@pytest.fixture(scope="module")
def template(
    server: URL, templates: Callable[[IdType], str], spark: SparkSession, origin: datetime
) -> Iterator[str]:
    """A database in which all of forty hours is done.

    Each hour has an answer in a session of its own and, every fourth, a submission.
    """
    with made_databases(server, templates) as make:
        made = make()
        execute(
            made,
            "INSERT INTO questions SELECT q, 'A' FROM generate_series(1, 3) q",
            f"INSERT INTO sessions SELECT n, timestamptz '{origin}' + n * interval '1 hour' "
            "+ interval '50 min' FROM generate_series(0, 39) n",
            "INSERT INTO answers SELECT n, 1 + n % 5, 1 + n % 3, 7, n, 'A', "
            f"timestamptz '{origin}' + n * interval '1 hour' + interval '20 min' "
            "FROM generate_series(0, 39) n",
            "INSERT INTO submissions SELECT 1 + n % 5, 7, "
            f"timestamptz '{origin}' + n * interval '1 hour' + interval '30 min', 'completed' "
            "FROM generate_series(0, 39, 4) n",
        )
        run_facts(made, spark, Window(origin, origin + 40 * HOUR))
        yield str(made.url.database)


@pytest.fixture
def platform(
    server: URL,
    template: str,
    origin: datetime,
    instance: DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Platform]:
    """A platform whose forty hours are done."""
    url = create_database(server, "platform", template)
    monkeypatch.setenv("DB_DEV_URL", url.render_as_string(hide_password=False))
    monkeypatch.setenv("MCQ_PARTITION_START", origin.isoformat())
    yield Platform(Database(url, "public", "analytics"), instance, origin)
    drop_database(url)


def test_after_the_daemon_was_down_every_hour_is_done_once(platform: Platform) -> None:
    execute(
        platform.database,
        "DELETE FROM analytics.etl_metadata",
        *(f"TRUNCATE analytics.{fact.name}, analytics.{fact.hours_table}" for fact in FACTS),
    )
    first_ten = Window(platform.first, platform.first + 10 * HOUR)
    platform.carry_out([RunRequest(tags=range_tags(first_ten))])
    missed = platform.schedule_tick()
    [(first, last)] = platform.hours(missed)
    assert first == 10
    assert last - first + 1 >= 30
    platform.carry_out(missed)
    assert platform.sensor_tick() == []
    for name in NAMES:
        assert platform.attempts(name)[:40] == [1] * 40
    assert wrong_rows(platform.database) == []


def test_what_is_in_progress_is_not_requested_and_what_has_failed_is(platform: Platform) -> None:
    execute(platform.database, "UPDATE analytics.etl_metadata SET status = 'failed'")
    run = platform.instance.create_run_for_job(
        platform.definitions.resolve_job_def(FACTS_JOB),
        status=DagsterRunStatus.STARTED,
        tags=range_tags(Window(platform.first + 3 * HOUR, platform.first + 31 * HOUR)),
    )

    def requested() -> list[int]:
        return [first for first, _ in platform.hours(platform.schedule_tick())]

    # Each half of the eighty hours that failed together has a run of its own.
    assert requested() == [0, 31, 40]
    platform.instance.report_run_failed(run)
    # Each half of the eighty hours that failed together has a run of its own.
    assert requested() == [0, 31, 40]
    platform.instance.add_run_tags(run.run_id, {"dagster/will_retry": "false"})
    assert requested() == [0, 3, 17, 31, 40]


def test_an_hour_that_is_stored_but_failed_in_dagster_is_requested_too(platform: Platform) -> None:
    """As after a kill between the commit and Dagster's record of it."""
    run = platform.instance.create_run_for_job(
        platform.definitions.resolve_job_def(FACTS_JOB),
        tags={"dagster/partition": partition_key(platform.first + 5 * HOUR)},
        asset_selection=frozenset({AssetKey("test_funnel_fact")}),
    )
    platform.instance.report_run_failed(run)
    platform.instance.add_run_tags(run.run_id, {"dagster/will_retry": "false"})
    request = platform.schedule_tick()[0]
    assert platform.hours([request]) == [(5, 5)]
    assert request.asset_selection == [AssetKey("test_funnel_fact")]


def test_without_the_database_the_newest_hour_is_requested_and_its_failure_seen(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, closed: datetime
) -> None:
    monkeypatch.setenv("DB_DEV_URL", "postgresql://nobody@127.0.0.1:1/nothing")
    [request] = platform.schedule_tick()
    assert request.partition_key == partition_key(closed - HOUR)


def test_late_rows_in_three_old_hours_run_just_these_again_and_once(platform: Platform) -> None:
    assert platform.sensor_tick() == []
    execute(
        platform.database,
        f"INSERT INTO answers VALUES (100, 9, 1, 7, 5, 'B', timestamptz '{platform.first}' "
        "+ interval '5 hours 10 minutes')",
        "UPDATE answers SET submitted_option = 'C' WHERE answer_id = 17",
        "DELETE FROM answers WHERE answer_id = 29",
    )
    assert wrong_rows(platform.database) != []
    late = platform.sensor_tick()
    assert platform.hours(late) == [(5, 5), (17, 17), (29, 29)]
    for request in late:
        assert set(request.asset_selection or []) == {AssetKey(name) for name in NAMES}
    observed = platform.instance.fetch_observations(AssetKey("answers"), limit=3).records
    assert {record.partition_key for record in observed} == {
        partition_key(platform.first + hour * HOUR) for hour in (5, 17, 29)
    }
    platform.carry_out(late)
    assert wrong_rows(platform.database) == []
    assert platform.sensor_tick() == []
    assert sum(platform.attempts("test_summary_fact")) == 43


def test_a_late_submission_concerns_the_funnel_alone(platform: Platform) -> None:
    execute(
        platform.database,
        "UPDATE submissions SET completion_status = 'timeout' "
        f"WHERE submit_time < timestamptz '{platform.first}' + interval '1 hour'",
    )
    [late] = platform.sensor_tick()
    assert late.asset_selection == [AssetKey("test_funnel_fact")]
    platform.carry_out([late])
    assert wrong_rows(platform.database) == []
    assert platform.sensor_tick() == []


def test_corrections_are_found_however_old_the_answers_are(
    platform: Platform, spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MCQ_LOOKBACK_HOURS", "12")
    monkeypatch.setenv("MCQ_AUDIT_HOURS", "20")
    assert platform.sensor_tick() == []
    platform.cursor = None
    execute(
        platform.database,
        "UPDATE sessions SET expiry_time = expiry_time - interval '40 min' WHERE session_id = 3",
        "UPDATE sessions SET expiry_time = expiry_time + interval '1 min' WHERE session_id = 4",
        "DELETE FROM sessions WHERE session_id = 5",
    )
    assert platform.hours(platform.sensor_tick()) == [(3, 3)]
    run_facts(
        platform.database, spark, Window(platform.first + 3 * HOUR, platform.first + 4 * HOUR)
    )
    assert wrong_rows(platform.database) == []
    monkeypatch.setenv("MCQ_LOOKBACK_HOURS", "1")
    monkeypatch.setenv("MCQ_AUDIT_HOURS", "0")
    assert platform.sensor_tick() == []
    execute(platform.database, "UPDATE questions SET correct_option = 'B' WHERE question_id = 2")
    wanted = platform.sensor_tick()
    assert wanted != []
    assert platform.hours(platform.sensor_tick()) == platform.hours(wanted)
    platform.carry_out(wanted)
    assert wrong_rows(platform.database) == []
    assert platform.sensor_tick() == []


def slow(platform: Platform, schema: str, table: str, column: str, seconds: float) -> None:
    """Let each row of a table that is read take its time, as on a much larger platform."""
    kind = scalar(
        platform.database,
        "SELECT CAST(CAST(atttypid AS regtype) AS text) FROM pg_attribute "
        f"WHERE attrelid = CAST('{schema}.{table}' AS regclass) AND attname = '{column}'",
    )
    execute(
        platform.database,
        f"ALTER TABLE {schema}.{table} RENAME TO {table}_rows",
        f"CREATE FUNCTION {schema}.slow(value {kind}) RETURNS boolean LANGUAGE plpgsql IMMUTABLE "
        f"AS $$ BEGIN PERFORM pg_sleep({seconds}); RETURN true; END $$",
        f"CREATE VIEW {schema}.{table} AS SELECT * FROM {schema}.{table}_rows "
        f'WHERE {schema}.slow("{column}")',
    )


def quick(platform: Platform, schema: str, table: str) -> None:
    execute(
        platform.database,
        f"DROP VIEW {schema}.{table}",
        f"ALTER TABLE {schema}.{table}_rows RENAME TO {table}",
    )


def covered(platform: Platform, found: Iterable[RunRequest]) -> set[int]:
    return {hour for first, last in platform.hours(found) for hour in range(first, last + 1)}


def test_an_answer_key_is_compared_page_by_page_and_anew_where_it_changes_meanwhile(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparisons, "PIECE_SECONDS", 1)
    monkeypatch.setattr(comparisons, "FEWEST_ROWS", 1)
    monkeypatch.setattr(comparisons, "KEY_SECONDS", 1.5)
    # Nothing is found by the fingerprints of hours.
    monkeypatch.setenv("MCQ_LOOKBACK_HOURS", "1")
    monkeypatch.setenv("MCQ_AUDIT_HOURS", "0")
    assert platform.sensor_tick() == []
    fact = "analytics.question_interaction_fact"
    execute(
        platform.database,
        f"INSERT INTO {fact} SELECT 1000 + n, test_id, question_id, first_answer_time, "
        "last_answer_time, answer_count, final_answer_option, is_correct, revisited, time_spent "
        f"FROM generate_series(1, 160) n, (SELECT * FROM {fact} WHERE question_id = 3 "
        "ORDER BY last_answer_time LIMIT 1) f",
        "UPDATE questions SET correct_option = 'B' WHERE question_id = 2",
    )
    slow(platform, "analytics", "question_interaction_fact", "answer_count", 0.02)
    cursor = json.loads(platform.cursor or "")
    platform.cursor = json.dumps({**cursor, "rows_at_once": 64})
    first = covered(platform, platform.sensor_tick())
    progress = comparisons.ComparisonState.from_cursor(platform.cursor)
    assert progress.rows_at_once < 64
    assert progress.round is not None
    assert progress.round.after is not None
    assert progress.round.is_wrong
    # What is wrong by this lies before what was reached.
    execute(
        platform.database, "UPDATE questions SET correct_option = 'C' WHERE question_id IN (1, 3)"
    )
    second = covered(platform, platform.sensor_tick())
    assert first < second
    ticks = 2
    while comparisons.ComparisonState.from_cursor(platform.cursor).round is not None:
        second |= covered(platform, platform.sensor_tick())
        ticks += 1
    assert ticks >= 3
    quick(platform, "analytics", "question_interaction_fact")
    wrong = scalar(
        platform.database,
        "SELECT array_agg(DISTINCT date_trunc('hour', last_answer_time, 'UTC')) FROM "
        f"{fact} f JOIN questions q USING (question_id) WHERE is_correct <> (final_answer_option "
        "= correct_option)",
    )
    assert isinstance(wrong, list)
    assert second == {(hour - platform.first) // HOUR for hour in wrong}
    execute(platform.database, f"DELETE FROM {fact} WHERE student_id > 1000")
    while found := platform.sensor_tick():
        platform.carry_out(found)
    assert wrong_rows(platform.database) == []


def test_where_hours_take_too_long_fewer_are_compared_at_once_and_the_newest_at_each_tick(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparisons, "PIECE_SECONDS", 0.6)
    monkeypatch.setattr(comparisons, "RECENT_SECONDS", 1.5)
    execute(
        platform.database,
        "UPDATE answers SET submitted_option = 'C' WHERE answer_id IN (1, 39)",
    )
    slow(platform, "public", "answers", "timestamp", 0.02)
    found: list[set[int]] = []
    while not any(1 in hours for hours in found):
        found.append(covered(platform, platform.sensor_tick()))
        assert len(found) < 12
    first = next(number for number, hours in enumerate(found) if hours)
    assert first <= 2
    assert all(39 in hours for hours in found[first:])
    assert len(found) - first > 1


def test_an_hour_that_takes_too_long_alone_fails_the_tick_which_says_what_to_do(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparisons, "PIECE_SECONDS", 0.2)
    monkeypatch.setattr(comparisons, "RECENT_SECONDS", 0.5)
    slow(platform, "public", "answers", "timestamp", 0.3)
    platform.cursor = json.dumps({"hours_at_once": 4})
    for _ in range(2):
        with pytest.raises(
            McqError, match=r"^the hour 2.* took longer than .* init-db names missing"
        ):
            while True:  # the size is halved first
                platform.sensor_tick()
    kept = KeptCursor(platform.instance, "late_data_sensor", platform.cursor).read()
    assert comparisons.ComparisonState.from_cursor(kept).answer_key is not None
    # What else there is to find is found all the same.
    execute(platform.database, "UPDATE questions SET correct_option = 'B' WHERE question_id = 2")
    assert covered(platform, platform.sensor_tick()) != set()


@pytest.mark.parametrize("id_type", IdType)
def test_pages_of_the_fact_hold_each_row_once_whatever_its_ids_are(
    make_database: MakeDatabase, id_type: IdType
) -> None:
    database = make_database(id_type)
    ids = {
        IdType.INTEGER: "{}",
        IdType.BIGINT: "9000000000 + {}",
        IdType.TEXT: "repeat('ä'' %', {}) || '%b'",
        IdType.UUID: "CAST(md5(CAST({} AS text)) AS uuid)",
    }
    student, test, question = (ids[id_type].format(n) for n in ("n", "n % 3", "n % 7"))
    execute(
        database,
        f"INSERT INTO questions SELECT {ids[id_type].format('n')}, 'A' "
        "FROM generate_series(0, 4) n",
        "INSERT INTO analytics.question_interaction_fact SELECT "
        f"{student.replace('n', 'n % 11')}, {test}, {question}, moment, moment, 1, "
        "'A', n % 5 <> 0, false, 0 FROM (SELECT n, timestamptz '2024-01-01Z' + n * interval "
        "'1 hour' AS moment FROM generate_series(0, 230) n) m",
    )
    with database.engine().connect() as connection:
        corrections = Corrections(inspect_base_tables(connection, "public"), "analytics")
        last, rows, keys, hours = None, 0, [], set[datetime]()
        while True:
            page = corrections.wrong_rows_after(connection, last, 20)
            rows, last = rows + page.rows, page.last
            hours |= page.hours
            if last is None:
                break
            keys.append(last)
        assert (rows, len(set(keys))) == (231, 12)
        whole = corrections.wrong_rows_after(connection, None, 1_000)
        assert (whole.rows, whole.hours) == (231, hours)
        # Of every fifth row the stored verdict is wrong, or there is no key.
        assert len(hours) > 231 // 5


def test_a_page_reads_the_rows_of_the_page_alone(database: Database) -> None:
    execute(
        database,
        "INSERT INTO questions SELECT n, 'A' FROM generate_series(1, 9) n",
        "INSERT INTO analytics.question_interaction_fact SELECT n, n % 9, n % 8, moment, moment, 1,"
        " 'A', true, false, 0 FROM (SELECT n, timestamptz '2024-01-01Z' AS moment "
        "FROM generate_series(1, 50000) n) m",
        "ANALYZE analytics.question_interaction_fact, questions",
    )
    fetched = (
        "SELECT seq_tup_read + coalesce(idx_tup_fetch, 0) FROM pg_stat_xact_user_tables "
        "WHERE relname = 'question_interaction_fact'"
    )
    with database.engine().connect() as connection:
        corrections = Corrections(inspect_base_tables(connection, "public"), "analytics")
        page = corrections.wrong_rows_after(connection, Key("30000", "3", "0"), 500)
        assert page.rows == 500
        assert connection.execute(text(fetched)).scalar_one() <= 501


def test_a_failed_hour_is_left_to_the_schedule(platform: Platform) -> None:
    execute(
        platform.database,
        "UPDATE answers SET submitted_option = 'C' WHERE answer_id = 17",
        "INSERT INTO analytics.etl_metadata (pipeline_name, window_start, window_end, status, "
        f"started_at, finished_at) SELECT name, timestamptz '{platform.first}' + interval '17 h', "
        f"timestamptz '{platform.first}' + interval '18 h', 'failed', now(), now() "
        f"FROM unnest(ARRAY{NAMES}) name",
    )
    assert platform.sensor_tick() == []
    assert (17, 17) in platform.hours(platform.schedule_tick())


@pytest.mark.parametrize("table", ["answers", "submissions"])
def test_an_observation_scans_the_index_of_its_hours(database: Database, table: str) -> None:
    execute(
        database,
        "INSERT INTO answers SELECT n, n % 99, n % 9, 1, n, 'A', "
        "timestamptz '2024-01-01Z' + n * interval '1 min' FROM generate_series(1, 50000) n",
        "INSERT INTO submissions SELECT n % 99, 1, timestamptz '2024-01-01Z' + n * interval "
        "'1 min', 'completed' FROM generate_series(1, 50000) n",
        "ANALYZE answers, submissions",
    )
    with database.engine().connect() as connection:
        base = inspect_base_tables(connection, "public")
        statement = fingerprint_statement(base, FACTS_BY_NAME["test_funnel_fact"], table)
        start = START + timedelta(days=10)
        plan = "\n".join(
            connection.execute(
                text(f"EXPLAIN {statement}"),
                {"window_start": start, "window_end": start + 72 * HOUR},
            ).scalars()
        )
    assert f"Scan using {table}_" in plan or f"Bitmap Index Scan on {table}_" in plan
    assert f"Seq Scan on {table}" not in plan
    assert scalar(database, f"SELECT count(*) FROM {table}") == 50_000
