"""Facts with partitions: made by `init-db --fact-partitions`, and stored as plain ones are."""

from __future__ import annotations

import pytest
from pyspark.sql import SparkSession
from sqlalchemy import text

from mcq_analytics.compute.attempt import Attempt
from mcq_analytics.model.facts import PARTITIONED, IdType
from mcq_analytics.postgres import partitions
from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.partitions import partition_facts
from mcq_analytics.transforms.student_tests import student_tests
from mcq_analytics_tests.commands import call, fails
from mcq_analytics_tests.conftest import MakeDatabase
from mcq_analytics_tests.depth import in_turns
from mcq_analytics_tests.facts_of import (
    add_sample,
    contents,
    execute,
    run_facts,
    scalar,
    window,
    wrong_rows,
)
from mcq_analytics_tests.reading import WAYS, read_by
from mcq_analytics_tests.servers import wait_until

WHOLE = window("2024-01-01T00", "2024-01-03T00")
HALF = window("2024-01-01T00", "2024-01-01T12")
INTERACTIONS, SUMMARIES = (f"analytics.{fact}" for fact in PARTITIONED)
PARTS = """
    SELECT count(*) FROM pg_inherits h JOIN pg_class p ON p.oid = h.inhparent
    WHERE p.relkind = 'p' AND CAST(p.oid AS regclass)::text = '{}'
"""
# All that an owner may have given a fact, by name: the new table has the same.
KEPT = """
    SELECT array_agg(what ORDER BY what) FROM (
        SELECT replace(pg_get_indexdef(indexrelid), ' ON ONLY ', ' ON ') AS what
        FROM pg_index WHERE indrelid = CAST('{0}' AS regclass)
        UNION ALL
        SELECT concat_ws(' ', conname, pg_get_constraintdef(oid), obj_description(oid))
        FROM pg_constraint
        WHERE conrelid = CAST('{0}' AS regclass)
        UNION ALL
        SELECT concat_ws(' ', attname, format_type(atttypid, atttypmod), attnotnull,
            pg_get_expr(adbin, adrelid), col_description(attrelid, attnum))
        FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE attrelid = CAST('{0}' AS regclass) AND attnum > 0 AND NOT attisdropped
        UNION ALL
        SELECT obj_description(indexrelid) FROM pg_index WHERE indrelid = CAST('{0}' AS regclass)
        UNION ALL
        SELECT concat_ws(' ', pg_get_userbyid(relowner),
            coalesce(relacl, acldefault('r', relowner)), obj_description(oid)) FROM pg_class
        WHERE oid = CAST('{0}' AS regclass)
    ) kept
"""


def partition(database: Database, number: int) -> None:
    with database.engine().begin() as connection:
        partition_facts(connection, "analytics", number)


def rows(database: Database, table: str) -> list[int]:
    """Return the rows of each partition of a fact."""
    with database.engine().connect() as connection:
        return list(
            connection.execute(
                text(f"SELECT count(*) FROM {table} GROUP BY tableoid ORDER BY tableoid")
            ).scalars()
        )


@pytest.mark.parametrize(("id_type", "way"), in_turns([IdType.BIGINT, IdType.TEXT], WAYS))
def test_runs_over_partitions_are_exact(
    make_database: MakeDatabase,
    spark: SparkSession,
    monkeypatch: pytest.MonkeyPatch,
    id_type: IdType,
    way: str,
) -> None:
    read_by(way, monkeypatch)
    database = make_database(id_type)
    partition(database, 3)
    add_sample(database, students=20, seed=7)
    run_facts(database, spark, HALF)
    run_facts(database, spark, WHOLE)
    assert wrong_rows(database) == []
    assert len(rows(database, INTERACTIONS)) == 3
    before = contents(database)
    run_facts(database, spark, WHOLE)
    assert contents(database) == before
    execute(
        database,
        "DELETE FROM answers WHERE student_id IN (SELECT student_id FROM answers LIMIT 200)",
        "UPDATE answers SET submitted_option = 'Z' WHERE student_id = (SELECT max(student_id) "
        "FROM answers)",
    )
    report = run_facts(database, spark, WHOLE)
    assert report.counts["question_interaction_fact"].deleted > 0
    assert report.counts["question_interaction_fact"].updated > 0
    assert wrong_rows(database) == []


def test_ids_of_submissions_may_be_too_wide_for_a_partitioned_fact(
    make_database: MakeDatabase, spark: SparkSession
) -> None:
    database = make_database(None)
    execute(
        database,
        "CREATE TABLE answers (answer_id int, student_id int, question_id int, test_id int, "
        'session_id int, submitted_option text, "timestamp" timestamptz)',
        "CREATE TABLE questions (question_id int, correct_option text)",
        "CREATE TABLE sessions (session_id int, expiry_time timestamptz)",
        "CREATE TABLE submissions (student_id bigint, test_id bigint, submit_time timestamptz, "
        "completion_status text)",
    )
    assert call("init-db", "--fact-partitions", "4").exit_code == 0
    execute(
        database,
        "INSERT INTO answers SELECT n, n, 1, n % 3, NULL, 'A', '2024-01-01 00:10Z' "
        "FROM generate_series(-5, 5) n",
        "INSERT INTO submissions SELECT n * 10000000000, n, '2024-01-01 00:20Z', 'completed' "
        "FROM generate_series(-5, 5) n",
    )
    run_facts(database, spark, HALF)
    execute(database, "DELETE FROM answers WHERE answer_id < 0")
    run_facts(database, spark, HALF)
    assert wrong_rows(database) == []
    assert sum(rows(database, INTERACTIONS)) == 6


def test_partitions_of_another_kind_are_searched_for_all_keys(
    make_database: MakeDatabase, spark: SparkSession
) -> None:
    database = make_database(IdType.TEXT)
    execute(
        database,
        f"ALTER TABLE {SUMMARIES} RENAME TO former",
        f"CREATE TABLE {SUMMARIES} (LIKE analytics.former INCLUDING ALL EXCLUDING INDEXES, "
        "PRIMARY KEY (student_id, test_id)) PARTITION BY RANGE (student_id)",
        f"CREATE TABLE {SUMMARIES}_low PARTITION OF {SUMMARIES} FOR VALUES FROM (MINVALUE) TO "
        "('student-B')",
        f"CREATE TABLE {SUMMARIES}_high PARTITION OF {SUMMARIES} FOR VALUES FROM ('student-B') "
        "TO (MAXVALUE)",
        "DROP TABLE analytics.former",
        "INSERT INTO answers SELECT n, 'student-' || chr(n), 'q', 't' || n % 3, NULL, 'A', "
        "'2024-01-01 00:10Z' FROM generate_series(48, 122) n",
    )
    run_facts(database, spark, HALF)
    assert wrong_rows(database) == []
    execute(database, "DELETE FROM answers WHERE answer_id::int % 2 = 0")
    run_facts(database, spark, HALF)
    assert wrong_rows(database) == []
    assert len(rows(database, SUMMARIES)) == 2


def test_another_number_of_partitions_keeps_all_that_a_fact_has(
    database: Database, spark: SparkSession
) -> None:
    roles = ("reads_facts", "owns_facts")
    add_sample(database, students=10, seed=7, hours=24)
    run_facts(database, spark, HALF)
    execute(
        database,
        *(f"DROP ROLE IF EXISTS {role}" for role in roles),
        *(f"CREATE ROLE {role}" for role in roles),
        f"GRANT SELECT, UPDATE ON {SUMMARIES} TO reads_facts",
        f'CREATE INDEX "by % of time" ON {INTERACTIONS} ((time_spent * 1), answer_count) '
        "WHERE final_answer_option LIKE 'a%\\:b'",
        f"CREATE TABLE known AS SELECT DISTINCT test_id FROM {INTERACTIONS}",
        "ALTER TABLE known ADD PRIMARY KEY (test_id)",
        f"ALTER TABLE {INTERACTIONS} ADD FOREIGN KEY (test_id) REFERENCES known",
        "COMMENT ON INDEX analytics.question_interaction_fact_test_id_idx IS 'it''s 5 % of all'",
        f"ALTER TABLE {SUMMARIES} ADD COLUMN doubled bigint "
        "GENERATED ALWAYS AS (correct_answers * 2) STORED",
        f"ALTER TABLE {SUMMARIES} OWNER TO owns_facts",
    )
    try:
        kept = [scalar(database, KEPT.format(table)) for table in (INTERACTIONS, SUMMARIES)]
        before = contents(database)
        for number in (4, 4, 7, 1):
            result = call("init-db", "--fact-partitions", str(number))
            assert result.exit_code == 0, result.stderr
            assert contents(database) == before
            for table, has in zip((INTERACTIONS, SUMMARIES), kept, strict=True):
                assert scalar(database, KEPT.format(table)) == has
                assert scalar(database, PARTS.format(table)) == (number if number > 1 else 0)
            run_facts(database, spark, HALF)
            assert contents(database) == before
    finally:
        execute(
            database,
            *(f"DROP OWNED BY {role} CASCADE" for role in roles),
            *(f"DROP ROLE {role}" for role in roles),
        )


def test_init_db_says_which_facts_have_other_partitions(database: Database) -> None:
    first = call("init-db", "--fact-partitions", "4")
    assert "question_interaction_fact has 4 partitions now" in first.stdout
    assert "test_summary_fact has 4 partitions now" in first.stdout
    assert "partitions" not in call("init-db", "--fact-partitions", "4").stdout
    assert "partitions" not in call("init-db").stdout
    assert scalar(database, PARTS.format(INTERACTIONS)) == 4
    assert "has no partitions now" in call("init-db", "--fact-partitions", "1").stdout
    refused = call("init-db", "--fact-partitions", "0")
    assert refused.exit_code == 2
    assert "0 is not in the range 1<=x<=256" in refused.stderr


def test_a_fact_with_a_view_on_it_is_not_replaced(database: Database) -> None:
    execute(database, f"CREATE VIEW of_an_analyst AS SELECT test_id FROM {SUMMARIES}")
    fails(
        call("init-db", "--fact-partitions", "4"),
        1,
        "something rests on it (view of_an_analyst depends on table analytics.test_summary_fact)",
        "drop that first",
    )
    assert scalar(database, PARTS.format(INTERACTIONS)) == 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            (
                f"CREATE TRIGGER noted BEFORE UPDATE ON {INTERACTIONS} FOR EACH ROW "
                "EXECUTE FUNCTION suppress_redundant_updates_trigger()"
            ),
            "the trigger noted",
        ),
        (f"CREATE RULE noted AS ON DELETE TO {INTERACTIONS} DO ALSO NOTHING", "the rule noted"),
        (f"CREATE POLICY own ON {INTERACTIONS}", "the policy own"),
        (f"ALTER TABLE {INTERACTIONS} ENABLE ROW LEVEL SECURITY", "row level security"),
        (f"CREATE PUBLICATION sent FOR TABLE {INTERACTIONS}", "a place in the publication sent"),
        (
            f"GRANT SELECT (time_spent) ON {INTERACTIONS} TO PUBLIC",
            "privileges on the column time_spent",
        ),
        (
            f"ALTER TABLE {INTERACTIONS} ALTER student_id SET STATISTICS 500",
            "a statistics target of the column student_id",
        ),
        (f"ALTER TABLE {INTERACTIONS} SET (fillfactor = 80)", "storage parameters"),
        (f"ALTER TABLE {INTERACTIONS} REPLICA IDENTITY FULL", "a replica identity"),
        (
            f"ALTER TABLE {INTERACTIONS} CLUSTER ON question_interaction_fact_pkey",
            "an order by CLUSTER",
        ),
    ],
)
def test_a_fact_with_what_a_new_table_would_lack_is_not_replaced(
    database: Database, change: str, named: str
) -> None:
    execute(database, change)
    fails(call("init-db", "--fact-partitions", "4"), 1, f"which would lack {named}: drop that")
    assert scalar(database, PARTS.format(INTERACTIONS)) == 0


def test_while_somebody_uses_a_fact_its_partitions_stay(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "SECONDS_TO_LOCK", 1)
    with database.engine().begin() as connection:
        connection.execute(text(f"SELECT count(*) FROM {SUMMARIES}"))
        fails(call("init-db", "--fact-partitions", "4"), 1, "setting up the database", "lock")
    assert scalar(database, PARTS.format(INTERACTIONS)) == 0


def test_an_attempt_that_has_begun_stores_its_rows_in_new_partitions(
    database: Database, spark: SparkSession
) -> None:
    add_sample(database, students=10, seed=7, hours=24)
    with Attempt(database, HALF, "test-run") as attempt:
        frame = student_tests(**attempt.inputs(spark))
        partition(database, 3)
        attempt.commit(frame, student_tests)
    run_facts(database, spark, WHOLE)
    assert len(rows(database, INTERACTIONS)) == 3
    assert wrong_rows(database) == []


def test_indexes_of_partitions_too_are_created_after_a_large_load(
    database: Database, spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_by("ranges", monkeypatch)
    add_sample(database, students=10, seed=7, hours=24)
    partition(database, 3)
    of_parts = (
        "SELECT array_agg(indexrelid::bigint ORDER BY indexrelid) FROM pg_index "
        "WHERE indrelid = 'analytics.{}_p1'::regclass"
    )
    first, second = PARTITIONED
    execute(database, f"ALTER INDEX analytics.{second}_p1_pkey SET (fillfactor = 70)")
    kept = [scalar(database, KEPT.format(table)) for table in (INTERACTIONS, SUMMARIES)]
    was_first, was_second = (scalar(database, of_parts.format(fact)) for fact in PARTITIONED)
    run_facts(database, spark, WHOLE)
    assert [scalar(database, KEPT.format(table)) for table in (INTERACTIONS, SUMMARIES)] == kept
    assert scalar(database, of_parts.format(first)) != was_first
    # Its owner has altered one of them.
    assert scalar(database, of_parts.format(second)) == was_second
    assert wrong_rows(database) == []


def test_each_student_s_test_is_searched_in_one_partition(
    database: Database, spark: SparkSession
) -> None:
    add_sample(database, students=20, seed=7)
    partition(database, 8)
    run_facts(database, spark, WHOLE)
    execute(database, "SELECT pg_stat_reset()")
    report = run_facts(database, spark, WHOLE)
    searched = "SELECT sum(idx_scan) FROM pg_stat_user_indexes WHERE indexrelname LIKE '{}_p%_pkey'"
    wait_until(lambda: all(scalar(database, searched.format(fact)) for fact in PARTITIONED))
    for fact in PARTITIONED:
        assert scalar(database, searched.format(fact)) == report.touched
