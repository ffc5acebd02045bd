"""The facts equal a full recompute in plain SQL, for many kinds of data and orders of runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pyspark.sql import SparkSession
from sqlalchemy import text

from mcq_analytics import initialize_spark_session_with_scaling
from mcq_analytics.model.facts import FACTS, TEST_FUNNEL, IdType
from mcq_analytics.model.windows import Window
from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.inspection import inspect_base_tables
from mcq_analytics.postgres.schema import key_types, migrate
from mcq_analytics.quality.audits import SAMPLE, Audits, Recomputed
from mcq_analytics.spark.session import MILLION
from mcq_analytics_tests.conftest import MakeDatabase, made_databases
from mcq_analytics_tests.facts_of import (
    add_sample,
    contents,
    execute,
    run_facts,
    scalar,
    window,
    wrong_rows,
)
from mcq_analytics_tests.servers import OwnServer

WHOLE = window("2024-01-01T00", "2024-01-03T00")
LATE = window("2024-01-02T00", "2024-01-03T00")
EARLY = window("2024-01-01T00", "2024-01-02T00")


@pytest.mark.parametrize(
    ("id_type", "windows"),
    [
        (IdType.INTEGER, [WHOLE]),
        (IdType.BIGINT, [LATE, EARLY]),
        (IdType.TEXT, [WHOLE]),
        (IdType.UUID, [WHOLE]),
    ],
    ids=lambda given: given.value if isinstance(given, IdType) else f"{len(given)} windows",
)
def test_a_sample_equals_a_full_recompute_and_passes_its_audits(
    make_database: MakeDatabase, spark: SparkSession, id_type: IdType, windows: list[Window]
) -> None:
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
            rows = connection.execute(text(f"SELECT count(*) FROM analytics.{fact.name}"))
            sampled = min(rows.scalar_one(), SAMPLE)
            audits = Audits(fact, base, "analytics", WHOLE)
            for seed in range(5):
                assert audits.recomputed(connection, seed) == Recomputed(sampled, (), ())


def test_a_sample_that_many_tasks_read_and_shuffle_equals_a_full_recompute(
    database: Database, spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcq_analytics.compute.inputs.KEYS_PER_SPLIT", 500)
    initialize_spark_session_with_scaling("local", MILLION)
    add_sample(database, students=60, seed=7)
    run_facts(database, spark, WHOLE)
    initialize_spark_session_with_scaling("local", 0)
    spark.conf.set("spark.sql.shuffle.partitions", "2")
    assert wrong_rows(database) == []


def test_running_a_window_twice_changes_rows_once(database: Database, spark: SparkSession) -> None:
    add_sample(database, students=60, seed=7)
    first = run_facts(database, spark, WHOLE)
    written = contents(database)
    second = run_facts(database, spark, WHOLE)
    assert contents(database) == written
    assert {name: report.counts.written for name, report in second.items()} == {
        fact.name: 0 for fact in FACTS
    }
    assert all(report.counts.inserted == report.fact_rows > 0 for report in first.values())
    assert all(report.rows_read == first[name].rows_read for name, report in second.items())


def test_only_changed_rows_get_a_new_updated_at(database: Database, spark: SparkSession) -> None:
    one_answer(database, 1, 7, 3, 5, "A", "2024-01-01 09:10Z")
    one_answer(database, 2, 8, 3, 5, "A", "2024-01-01 09:11Z")
    run_facts(database, spark, WHOLE)
    before = scalar(database, "SELECT max(updated_at) FROM analytics.question_interaction_fact")
    one_answer(database, 3, 8, 3, 5, "B", "2024-01-01 09:12Z")
    report = run_facts(database, spark, WHOLE)["question_interaction_fact"]
    assert (report.counts.inserted, report.counts.updated, report.counts.deleted) == (0, 1, 0)
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
    reports = run_facts(database, spark, NINE)
    assert [report.counts.written for report in reports.values()] == [0, 0, 0]
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
    left_out = run_facts(database, spark, NINE)[TEST_FUNNEL.name].left_out
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
    hours = "SELECT array_agg(hour AT TIME ZONE 'UTC' ORDER BY hour)::text FROM analytics.{}_hour"
    assert scalar(database, hours.format("question_interaction_fact")) == (
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
