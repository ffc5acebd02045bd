"""Comparing base tables with facts in pieces: pages, time limits, continuing at the next tick."""

from __future__ import annotations

import json
from datetime import datetime, timedelta

import pytest
from sqlalchemy import text

from mcq_analytics.compute.fingerprints import fingerprint_statement
from mcq_analytics.definitions.sensors.kept_cursors import KeptCursor
from mcq_analytics.definitions.sensors.late_data import windows_to_compare
from mcq_analytics.errors import McqError
from mcq_analytics.model.facts import IdType
from mcq_analytics.model.windows import HOUR, Window
from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.inspection import inspect_base_tables
from mcq_analytics.quality import comparisons
from mcq_analytics.quality.corrections import Corrections, Key
from mcq_analytics.settings import load_settings
from mcq_analytics_tests.conftest import (
    MakeDatabase,
)
from mcq_analytics_tests.facts_of import execute, scalar, wrong_rows
from mcq_analytics_tests.overlay import START
from mcq_analytics_tests.platforms import Platform, covered

pytest_plugins = ("mcq_analytics_tests.platform_fixtures",)


def test_the_past_is_compared_in_parts_over_and_over(
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


def slow(platform: Platform, schema: str, table: str, column: str, seconds: float) -> None:
    """Slow down every row that is read from a table, as on a much larger platform."""
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


def test_an_answer_key_is_compared_in_pages_and_again_from_the_start_if_it_changes(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparisons, "PIECE_SECONDS", 1)
    monkeypatch.setattr(comparisons, "FEWEST_ROWS", 1)
    monkeypatch.setattr(comparisons, "KEY_SECONDS", 1.5)
    # With these settings, the fingerprints of hours find nothing.
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
    # This makes rows wrong that the round has passed already.
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


def test_slow_hours_are_compared_in_smaller_pieces_and_the_newest_at_every_tick(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparisons, "PIECE_SECONDS", 0.6)
    monkeypatch.setattr(comparisons, "RECENT_SECONDS", 1.5)
    execute(
        platform.database,
        "UPDATE answers SET submitted_option = 'C' WHERE answer_id IN (1, 39)",
    )
    slow(platform, "public", "answers", "timestamp", 0.06)
    found: list[set[int]] = []
    while not any(1 in hours for hours in found):
        found.append(covered(platform, platform.sensor_tick()))
        assert len(found) < 12
    first = next(number for number, hours in enumerate(found) if hours)
    assert first <= 2
    assert all(39 in hours for hours in found[first:])
    assert len(found) - first > 1


def test_a_single_hour_that_is_too_slow_fails_the_tick_with_a_remedy(
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
    # Other changes are still found.
    execute(platform.database, "UPDATE questions SET correct_option = 'B' WHERE question_id = 2")
    assert covered(platform, platform.sensor_tick()) != set()


@pytest.mark.parametrize("id_type", IdType)
def test_pages_contain_every_row_once_for_every_type_of_id(
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
        # Every fifth row has a wrong result, or no answer key.
        assert len(hours) > 231 // 5


def test_a_page_reads_only_its_own_rows(database: Database) -> None:
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


@pytest.mark.parametrize("table", ["answers", "submissions"])
def test_fingerprints_are_read_by_an_index_scan(database: Database, table: str) -> None:
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
        statement = fingerprint_statement(base, table)
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
