"""Extreme values in base columns: none stops an hour, or makes a fact wrong."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyspark.sql import SparkSession
from sqlalchemy import text
from sqlalchemy.engine import URL

from mcq_analytics.compute.base_columns import LONGEST_KEY
from mcq_analytics.compute.fingerprints import stale_hours
from mcq_analytics.model.facts import FACTS, IdType
from mcq_analytics.postgres.base_snapshot import snapshot_connection
from mcq_analytics.postgres.database import Database
from mcq_analytics.quality.audits import Audits
from mcq_analytics.quality.corrections import Corrections
from mcq_analytics_tests.conftest import MakeDatabase, made_databases
from mcq_analytics_tests.disagreements import disagreements_now
from mcq_analytics_tests.facts_of import execute, run_facts, scalar, wrong_rows
from mcq_analytics_tests.loose_tables import DAY, NINE, create_base_tables, noise, require_settled
from mcq_analytics_tests.reading import WAYS, read_by, some_ways

HISTORIES = int(os.environ.get("HISTORIES", "2"))


@pytest.mark.parametrize("way", WAYS)
def test_a_key_or_session_with_several_rows_has_one_meaning_everywhere(
    database: Database, spark: SparkSession, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    read_by(way, monkeypatch)
    execute(
        database,
        "ALTER TABLE questions DROP CONSTRAINT questions_pkey",
        "ALTER TABLE sessions DROP CONSTRAINT sessions_pkey",
        # By bytes the greatest key is b; a null beside it does not count.
        "INSERT INTO questions VALUES (1, 'A'), (1, 'b'), (1, NULL), (2, NULL), (2, NULL)",
        "INSERT INTO sessions VALUES (1, '2024-01-01 09:05Z'), (1, '2024-01-01 09:20Z'), "
        "(2, '2024-01-01 09:05Z'), (2, NULL), (3, '2024-01-01 09:05Z'), (3, '-infinity'), "
        "(4, '2024-01-01 09:05Z'), (4, 'infinity')",
        "INSERT INTO answers VALUES (1, 7, 1, 5, 1, 'b', '2024-01-01 09:10Z'), "
        "(2, 7, 2, 5, 2, 'A', '2024-01-01 09:10Z'), (3, 7, 3, 5, 3, 'A', '2024-01-01 09:10Z'), "
        "(4, 7, 4, 5, 4, 'A', '2024-01-01 09:10Z'), (5, 8, 1, 5, 1, 'A', '2024-01-01 09:21Z')",
        "INSERT INTO submissions VALUES (7, 5, '2024-01-01 09:30Z', 'completed')",
    )
    report = run_facts(database, spark, NINE)
    rows = "SELECT string_agg(question_id || ' ' || coalesce(is_correct::text, '-'), ', ' "
    assert scalar(
        database, rows + "ORDER BY question_id) FROM analytics.question_interaction_fact"
    ) == ("1 true, 2 -, 4 -")
    assert report.duplicates == {"questions": 2, "sessions": 4}
    require_settled(database)


@pytest.mark.parametrize("way", some_ways())
def test_times_out_of_range_are_clamped(
    make_database: MakeDatabase, spark: SparkSession, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    read_by(way, monkeypatch)
    for time in ("timestamptz", "timestamp"):
        database = make_database(None)
        create_base_tables(database, time=time)
        ends = ("4713-01-01 00:00:00 BC", "0044-03-15 12:00:00 BC", "0001-01-01 00:00:00")
        starts = ("9999-12-31 23:59:59.999999", "12024-01-01 00:00:00", "294276-12-31 23:59:59")
        execute(
            database,
            # A session for each expiry, with the expiry as id, and an answer at nine in each.
            *(
                f"INSERT INTO sessions VALUES ('{when}', '{when}'); "
                f"INSERT INTO answers VALUES ('1', 's', 'in {when}', 't', '{when}', 'A', "
                f"'2024-01-01 09:10')"
                for when in (*ends, *starts, "infinity", "-infinity")
            ),
            # An answer at each time to one question, in a session that never expires.
            *(
                f"INSERT INTO answers VALUES ('2', 's', 'at', 't', NULL, 'A', '{when}'); "
                f"INSERT INTO submissions VALUES ('s', 't', '{when}', 'completed')"
                for when in (*ends, "2024-01-01 09:10", *starts)
            ),
            "INSERT INTO submissions VALUES ('s', 't', '2024-01-01 09:20', 'completed')",
        )
        run_facts(database, spark, NINE)
        questions = scalar(
            database,
            'SELECT array_agg(question_id ORDER BY question_id COLLATE "C") '
            "FROM analytics.question_interaction_fact WHERE question_id LIKE 'in %'",
        )
        assert questions == sorted(f"in {when}" for when in (*starts, "infinity"))
        span = (
            "SELECT (min(first_answer_time) AT TIME ZONE 'UTC')::text || ' ' || "
            "(max(last_answer_time) AT TIME ZONE 'UTC')::text "
            "FROM analytics.question_interaction_fact WHERE question_id = 'at'"
        )
        assert scalar(database, span) == "0001-01-01 00:00:00 9999-12-31 23:59:59.999999"
        assert wrong_rows(database, zoned=time == "timestamptz") == []
        with snapshot_connection(database.engine(), "public") as (connection, base):
            for fact in FACTS:
                found = Audits(fact, base, "analytics", DAY).recomputed(connection)
                # Their hours are outside all partitions, so the rows may await a run.
                assert found.wrong == ()
            assert stale_hours(connection, base, "analytics", DAY) == {}
            corrections = Corrections(base, "analytics")
            assert len(corrections.hours_of_question(connection, "at") or ()) == 3
            assert corrections.wrong_rows_after(connection, None, 10_000).hours == set()


@pytest.mark.parametrize("way", some_ways(1))
def test_an_id_too_long_for_a_row_is_left_out_and_counted_and_the_hour_succeeds(
    make_database: MakeDatabase, spark: SparkSession, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    read_by(way, monkeypatch)
    database = make_database(None)
    create_base_tables(database)
    rows = [
        ("s", "q", "t"),
        (noise(6_400), "q", "t"),
        ("s", noise(6_400), "t"),
        ("s", "q", noise(6_400)),
        (noise(LONGEST_KEY - 2), "q", "t"),  # fits to the byte
        (noise(LONGEST_KEY - 1), "q", "t"),
        ("é" * (LONGEST_KEY // 2 - 1), "q", "t"),  # counted in bytes
        ("é" * (LONGEST_KEY // 2), "q", "t"),
    ]
    with database.engine().begin() as connection:
        for number, (student, question, test) in enumerate(rows):
            connection.execute(
                text(
                    "INSERT INTO answers VALUES (:id, :student, :question, :test, :session, "
                    "'A', '2024-01-01 09:10Z')"
                ),
                # Ids that are not part of a key may have any length.
                {
                    "id": noise(9_000 + number),
                    "session": noise(9_000),
                    "student": student,
                    "question": question,
                    "test": test,
                },
            )
            connection.execute(
                text("INSERT INTO submissions VALUES (:student, :test, '2024-01-01 09:20Z', 'x')"),
                {"student": student, "test": test},
            )
    left_out = run_facts(database, spark, NINE).left_out
    assert left_out["answers_with_too_long_ids"] == 5
    assert left_out["submissions_with_too_long_ids"] == 3
    assert scalar(database, "SELECT count(*) FROM analytics.question_interaction_fact") == 3
    assert scalar(database, "SELECT total_submissions FROM analytics.test_funnel_fact") == 5
    require_settled(database)


ids = st.one_of(
    st.sampled_from(["", " ", "a", "B", "10", "9", 'o\'hara \\ "x"', "\n", "é", "🙂", "\ufeff"]),
    st.sampled_from([2_590, 2_598, 2_599, 2_600, 2_601, 2_700, 6_400]).map(noise),
    st.sampled_from([2_600, 6_400, 100_000]).map(lambda length: "x" * length),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20),
    st.none(),
)
texts = st.one_of(
    st.sampled_from(["A", "B", "completed", "COMPLETED", "Completed", "", "NULL", "{}", "\\N"]),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8),
    st.none(),
)
moments = st.sampled_from(
    [
        *("2024-01-01 09:00Z", "2024-01-01 09:10Z", "2024-01-01 09:59:59.999999Z"),
        *("4713-01-01 00:00Z BC", "0001-01-01 00:00Z", "1969-12-31 23:59:59.999999Z"),
        *("9999-12-31 23:59:59.999999Z", "294276-12-31 23:59:59Z"),
        *("infinity", "-infinity", None),
    ]
)
at_nine = st.sampled_from(["2024-01-01 09:00Z", "2024-01-01 09:10Z"])
few_ids = st.lists(ids, min_size=2, max_size=4)


@pytest.fixture(scope="module")
def loose_database(server: URL, templates: Callable[[IdType], str]) -> Iterator[Database]:
    """A database whose base tables have text columns and no constraints."""
    with made_databases(server, templates) as make:
        database = make(None)
        create_base_tables(database)
        yield database


@settings(
    max_examples=HISTORIES,
    derandomize=HISTORIES <= 10,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(st.data())
def test_an_hour_is_exact_whatever_the_base_rows_hold(
    loose_database: Database, spark: SparkSession, data: st.DataObject
) -> None:
    database = loose_database
    some = st.sampled_from(data.draw(few_ids))
    rows: dict[str, list[tuple[Any, ...]]] = {
        "answers": data.draw(
            st.lists(
                st.tuples(ids, some, some, some, some, texts, st.one_of(at_nine, moments)),
                min_size=5,
                max_size=30,
            )
        ),
        "questions": data.draw(st.lists(st.tuples(some, texts), max_size=5)),
        "sessions": data.draw(st.lists(st.tuples(some, moments), max_size=5)),
        "submissions": data.draw(
            st.lists(st.tuples(some, some, st.one_of(at_nine, moments), texts), max_size=8)
        ),
    }
    with database.engine().begin() as connection:
        for table, found in rows.items():
            connection.exec_driver_sql(f"TRUNCATE {table}")
            for row in found:
                places = ", ".join(["%s"] * len(row))
                connection.exec_driver_sql(f"INSERT INTO {table} VALUES ({places})", row)
    with pytest.MonkeyPatch.context() as patch:
        read_by(data.draw(st.sampled_from(WAYS)), patch)
        run_facts(database, spark, NINE)
    assert wrong_rows_of_nine(database) == []
    assert disagreements_now(database) == []
    with snapshot_connection(database.engine(), "public") as (connection, base):
        for fact in FACTS:
            found_wrong = Audits(fact, base, "analytics", NINE).recomputed(connection).wrong
            assert found_wrong == ()
        assert stale_hours(connection, base, "analytics", NINE) == {}


def wrong_rows_of_nine(database: Database) -> list[str]:
    """Return how the facts differ from a full recompute, except for missing rows.

    A row is missing if all its base rows lie in hours that are never computed.
    """
    return [row for row in wrong_rows(database) if "has None" not in row]
