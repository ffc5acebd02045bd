"""The facts equal a full recompute in plain SQL, for many kinds of data and orders of runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pyspark.sql import SparkSession

from mcq_analytics import initialize_spark_session_with_scaling
from mcq_analytics.model.base_tables import BASE_COLUMNS
from mcq_analytics.model.facts import FACTS, IdType
from mcq_analytics.model.windows import Window
from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.inspection import inspect_base_tables
from mcq_analytics.postgres.schema import key_types, migrate
from mcq_analytics.quality.audits import SAMPLE, Audits, Recomputed
from mcq_analytics.spark.scaling import MILLION
from mcq_analytics_tests.conftest import MakeDatabase, made_databases
from mcq_analytics_tests.depth import IS_DEEP
from mcq_analytics_tests.facts_of import (
    add_sample,
    contents,
    execute,
    run_facts,
    scalar,
    window,
    wrong_rows,
)
from mcq_analytics_tests.reading import WAYS, read_by, some_ways
from mcq_analytics_tests.servers import OwnServer

WHOLE = window("2024-01-01T00", "2024-01-03T00")
LATE = window("2024-01-02T00", "2024-01-03T00")
EARLY = window("2024-01-01T00", "2024-01-02T00")
ROWS_OF_ALL = "SELECT " + " + ".join(f"(SELECT count(*) FROM {name})" for name in BASE_COLUMNS)
ROWS_OF_ANSWERED = """
    SELECT (SELECT count(*) FROM answers) + (SELECT count(*) FROM submissions)
        + (SELECT count(*) FROM questions WHERE question_id IN (SELECT question_id FROM answers))
        + (SELECT count(*) FROM sessions WHERE session_id IN (SELECT session_id FROM answers))
"""


CASES = [
    (IdType.INTEGER, [WHOLE], "driver"),
    (IdType.INTEGER, [WHOLE], "slices"),
    (IdType.BIGINT, [LATE, EARLY], "driver"),
    (IdType.BIGINT, [LATE, EARLY], "slices"),
    (IdType.BIGINT, [LATE, EARLY], "ranges"),
    (IdType.TEXT, [WHOLE], "driver"),
    (IdType.TEXT, [LATE, EARLY], "slices"),
    (IdType.TEXT, [WHOLE], "ranges"),
    (IdType.TEXT, [LATE, EARLY], "ranges of answers"),
    (IdType.UUID, [WHOLE], "driver"),
    (IdType.UUID, [WHOLE], "slices"),
    (IdType.UUID, [LATE, EARLY], "ranges"),
    (IdType.UUID, [WHOLE], "ranges of answers"),
]
"""Every third one is tried, and all of them by `make test-deep`."""


@pytest.mark.parametrize(
    ("id_type", "windows", "way"),
    CASES if IS_DEEP else CASES[::3],
    ids=lambda given: (
        f"{len(given)} windows" if isinstance(given, list) else getattr(given, "value", given)
    ),
)
def test_a_sample_equals_a_full_recompute_and_passes_its_audits(
    make_database: MakeDatabase,
    spark: SparkSession,
    monkeypatch: pytest.MonkeyPatch,
    id_type: IdType,
    windows: list[Window],
    way: str,
) -> None:
    read_by(way, monkeypatch)
    database = make_database(id_type)
    add_sample(database, students=60, seed=7)
    for over in windows:
        run_facts(database, spark, over)
    assert wrong_rows(database) == []
    many = "SELECT count(*) > 1000 FROM analytics.question_interaction_fact"
    assert scalar(database, many) is True
    with database.engine().connect() as connection:
        base = inspect_base_tables(connection, "public")
        for fact in FACTS:
            audits = Audits(fact, base, "analytics", WHOLE)
            for seed in range(5):
                assert audits.recomputed(connection, seed) == Recomputed(SAMPLE, (), ())


@pytest.mark.parametrize("way", some_ways(1))
def test_a_sample_that_many_tasks_read_and_shuffle_equals_a_full_recompute(
    database: Database, resized: SparkSession, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    read_by(way, monkeypatch)
    initialize_spark_session_with_scaling("local", MILLION)
    add_sample(database, students=60, seed=7)
    run_facts(database, resized, WHOLE)
    assert wrong_rows(database) == []


@pytest.mark.parametrize("way", WAYS)
def test_running_a_window_twice_changes_rows_once(
    database: Database, spark: SparkSession, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    read_by(way, monkeypatch)
    add_sample(database, students=60, seed=7)
    first = run_facts(database, spark, WHOLE)
    written = contents(database)
    second = run_facts(database, spark, WHOLE)
    assert contents(database) == written
    assert {name: counts.written for name, counts in second.counts.items()} == {
        fact.name: 0 for fact in FACTS
    }
    assert all(counts.inserted == first.fact_rows[name] for name, counts in first.counts.items())
    assert all(rows > 0 for rows in first.fact_rows.values())
    assert second.fact_rows == first.fact_rows
    rows = scalar(database, ROWS_OF_ALL if way.startswith("ranges") else ROWS_OF_ANSWERED)
    assert second.rows_read == first.rows_read == rows


def test_only_changed_rows_get_a_new_updated_at(database: Database, spark: SparkSession) -> None:
    one_answer(database, 1, 7, 3, 5, "A", "2024-01-01 09:10Z")
    one_answer(database, 2, 8, 3, 5, "A", "2024-01-01 09:11Z")
    run_facts(database, spark, WHOLE)
    before = scalar(database, "SELECT max(updated_at) FROM analytics.question_interaction_fact")
    one_answer(database, 3, 8, 3, 5, "B", "2024-01-01 09:12Z")
    counts = run_facts(database, spark, WHOLE).counts["question_interaction_fact"]
    assert (counts.inserted, counts.updated, counts.deleted) == (0, 1, 0)
    newer = (
        "SELECT array_agg(student_id) FROM analytics.question_interaction_fact "
        f"WHERE updated_at > '{before}'"
    )
    assert scalar(database, newer) == [8]


def one_answer(
    database: Database, answer: int, student: int, question: int, test: int, option: str, when: str
) -> None:
    execute(
        database,
        "INSERT INTO answers VALUES "
        f"({answer}, {student}, {question}, {test}, 1, '{option}', '{when}')",
    )


NINE, TEN = window("2024-01-01T09", "2024-01-01T10"), window("2024-01-01T10", "2024-01-01T11")


def test_an_hour_without_activity_is_a_success_with_no_rows(
    database: Database, spark: SparkSession
) -> None:
    report = run_facts(database, spark, NINE)
    assert [counts.written for counts in report.counts.values()] == [0, 0, 0]
    assert scalar(
        database,
        "SELECT array_agg(DISTINCT (status, rows_read, rows_written)::text) "
        "FROM analytics.etl_metadata",
    ) == ["(success,0,0)"]


def test_rows_without_ids_or_time_are_left_out_and_counted(
    database: Database, spark: SparkSession
) -> None:
    one_answer(database, 1, 7, 3, 5, "A", "2024-01-01 09:10Z")
    execute(
        database,
        "INSERT INTO answers VALUES (2, NULL, 3, 5, 1, 'A', '2024-01-01 09:11Z'), "
        "(3, 7, NULL, 5, 1, 'A', '2024-01-01 09:11Z'), "
        "(4, 7, 3, NULL, 1, 'A', '2024-01-01 09:11Z'), "
        "(5, 7, 3, 5, 1, 'A', NULL), (6, 7, 3, 5, 1, 'A', 'infinity')",
        "INSERT INTO submissions VALUES (NULL, 5, '2024-01-01 09:20Z', 'completed'), "
        "(7, 5, NULL, 'completed'), (7, 5, '2024-01-01 09:20Z', 'completed')",
    )
    left_out = run_facts(database, spark, NINE).left_out
    assert left_out == {
        "answers_without_keys": 3,
        "answers_with_too_long_ids": 0,
        "answers_without_time": 2,
        "submissions_without_keys": 1,
        "submissions_with_too_long_ids": 0,
        "submissions_without_time": 1,
    }
    assert wrong_rows(database) == []


def test_times_without_a_zone_are_utc_whatever_the_zone_of_server_and_client(
    make_database: MakeDatabase, spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = make_database(None)
    monkeypatch.setenv("TZ", "America/New_York")
    execute(
        database,
        f"ALTER DATABASE {database.url.database} SET timezone TO 'Australia/Lord_Howe'",
        "CREATE TABLE answers (answer_id varchar(40), student_id uuid, question_id int, "
        "test_id bigint, session_id text, submitted_option char(1), timestamp timestamp)",
        "CREATE TABLE questions (question_id bigint, correct_option char(1))",
        "CREATE TABLE sessions (session_id varchar, expiry_time timestamp)",
        "CREATE TABLE submissions (student_id uuid, test_id int, submit_time timestamp, "
        "completion_status varchar(9), noise jsonb)",
    )
    with database.engine().begin() as connection:
        migrate(connection, "analytics", key_types(inspect_base_tables(connection, "public")))
    # Half an hour around both changes of daylight saving in New York, in 2024.
    for number, when in enumerate(
        ["2024-03-10 06:59:59.999999", "2024-03-10 07:00", "2024-11-03 05:30", "2024-11-03 06:30"]
    ):
        execute(
            database,
            f"INSERT INTO answers VALUES ('x{number}', '00000000-0000-0000-0000-00000000000a', 3, "
            f"5, 's', 'A', '{when}')",
        )
    execute(
        database,
        "INSERT INTO questions VALUES (3, 'A')",
        "INSERT INTO submissions VALUES ('00000000-0000-0000-0000-00000000000a', 5, "
        "'2024-11-03 06:45', 'COMPLETED', NULL)",
    )
    for start in ("2024-03-10T06", "2024-03-10T07", "2024-11-03T05", "2024-11-03T06"):
        run_facts(database, spark, window(start, start[:-1] + str(int(start[-1]) + 1)))
    assert wrong_rows(database, zoned=False) == []
    hours = (
        "SELECT array_agg(hour AT TIME ZONE 'UTC' ORDER BY hour)::text "
        "FROM analytics.student_test_hour"
    )
    assert scalar(database, hours) == (
        '{"2024-03-10 06:00:00","2024-03-10 07:00:00","2024-11-03 05:00:00","2024-11-03 06:00:00"}'
    )


def test_ties_between_text_ids_are_decided_by_their_bytes(
    make_database: MakeDatabase, spark: SparkSession
) -> None:
    database = make_database(IdType.TEXT)
    ids = ["a", "B", "é", "Z", "10", "9", 'o\'hara \\ "x"', "🙂" * 3, "x" * 200]
    for number, identity in enumerate(ids):
        with database.engine().begin() as connection:
            connection.exec_driver_sql(
                "INSERT INTO answers VALUES (%s, %s, %s, 't', 's', %s, '2024-01-01 09:10Z')",
                (identity, ids[0], ids[-1], str(number)),
            )
            connection.exec_driver_sql(
                "INSERT INTO answers VALUES (%s, %s, %s, %s, 's', %s, '2024-01-01 09:10Z')",
                (f"{identity}2", identity, identity, identity, str(number)),
            )
    run_facts(database, spark, NINE)
    assert wrong_rows(database) == []


def test_a_server_of_another_version_gives_the_same_facts(
    own_server: OwnServer, own_templates: Callable[[IdType], str], spark: SparkSession
) -> None:
    with made_databases(own_server.url(), own_templates) as make:
        database = make()
        add_sample(database, students=60, seed=7)
        run_facts(database, spark, EARLY)
        run_facts(database, spark, LATE)
        assert wrong_rows(database) == []
