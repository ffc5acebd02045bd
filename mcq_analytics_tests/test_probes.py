"""Which tables an index serves, as the planner says; and that facts are exact with and without."""

from __future__ import annotations

import pytest
from pyspark.sql import SparkSession
from sqlalchemy import text

from mcq_analytics.compute.selections import Selections
from mcq_analytics.compute.touched import plan_setting
from mcq_analytics.model.facts import IdType
from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.inspection import inspect_base_tables
from mcq_analytics.postgres.probes import Probe
from mcq_analytics.postgres.schema import key_types, migrate
from mcq_analytics_tests.conftest import MakeDatabase
from mcq_analytics_tests.depth import in_turns
from mcq_analytics_tests.disagreements import disagreements_now
from mcq_analytics_tests.facts_of import (
    add_sample,
    contents,
    execute,
    run_facts,
    scalar,
    window,
    wrong_rows,
)
from mcq_analytics_tests.owners_tables import PARTITIONED, SHAPES, VIEWS, WITHOUT_INDEXES
from mcq_analytics_tests.reading import WAYS, read_by, some_ways

ALL = {"answers", "submissions", "sessions", "questions"}
EARLY = window("2024-01-01T00", "2024-01-02T00")
LATE = window("2024-01-02T00", "2024-01-03T00")


def served(database: Database) -> dict[str, Probe]:
    with database.engine().connect() as connection:
        return dict(inspect_base_tables(connection, "public").probes)


@pytest.mark.parametrize(
    ("statements", "found"),
    [
        ((), ALL),
        (WITHOUT_INDEXES, set()),
        (
            (*WITHOUT_INDEXES, "CREATE INDEX ON answers (test_id, question_id)"),
            set(),
        ),
        ((*WITHOUT_INDEXES, "CREATE INDEX ON answers (question_id, student_id, test_id)"), set()),
        ((*WITHOUT_INDEXES, 'CREATE INDEX ON answers ("timestamp", student_id)'), set()),
        ((*WITHOUT_INDEXES, "CREATE INDEX ON answers (student_id)"), {"answers"}),
        ((*WITHOUT_INDEXES, "CREATE INDEX ON answers USING hash (student_id)"), {"answers"}),
        ((*WITHOUT_INDEXES, "CREATE INDEX ON answers (test_id, student_id)"), {"answers"}),
        ((*WITHOUT_INDEXES, "CREATE INDEX ON submissions (test_id, student_id)"), {"submissions"}),
        ((*WITHOUT_INDEXES, "CREATE INDEX ON submissions (test_id)"), set()),
        ((*WITHOUT_INDEXES, "CREATE INDEX ON questions (correct_option)"), set()),
        (
            (*WITHOUT_INDEXES, "CREATE INDEX ON answers (student_id) WHERE submitted_option > 'B'"),
            set(),
        ),
        ((*PARTITIONED, "CREATE INDEX ON answers (student_id, test_id)"), ALL),
        (PARTITIONED, ALL - {"answers"}),
        ((*PARTITIONED, "CREATE INDEX ON early_answers (student_id, test_id)"), ALL - {"answers"}),
        (VIEWS, ALL),
        ((*VIEWS, "DROP INDEX logs.answers_student_id_test_id_idx"), ALL - {"answers"}),
    ],
    ids=lambda given: given[-1][:60] if isinstance(given, tuple) and given else "",
)
@pytest.mark.parametrize("analyze", ["", "ANALYZE"], ids=["never analyzed", "analyzed"])
def test_a_table_is_served_if_an_index_leads_to_the_rows_of_a_key(
    database: Database, statements: tuple[str, ...], found: set[str], analyze: str
) -> None:
    add_sample(database, students=20, seed=3)
    execute(database, *statements, *([analyze] if analyze else []))
    assert served(database).keys() == found


def test_statistics_that_make_an_index_by_test_look_best_lead_to_a_probe_that_cannot_use_it(
    database: Database,
) -> None:
    """As the tests once were: one student each. Later each has many."""
    execute(
        database,
        "ALTER TABLE answers SET (autovacuum_enabled = false)",
        "CREATE INDEX by_test ON answers (test_id)",
        "INSERT INTO answers SELECT n, 1, n, n, 1, 'A', '2024-01-01 09:00Z' "
        "FROM generate_series(1, 20000) n",
        "ANALYZE answers",
        "INSERT INTO answers SELECT 20000 + n, n, n % 20, 7, 1, 'A', '2024-01-01 09:00Z' "
        "FROM generate_series(1, 20000) n",
    )
    assert served(database)["answers"] is Probe.BY_FIRST
    plan = plan_of_reading_answers(database)
    assert "answers_student_id_test_id_idx" in plan
    assert "by_test" not in plan


def plan_of_reading_answers(database: Database) -> str:
    with database.engine().connect() as connection:
        base = inspect_base_tables(connection, "public")
        selections = Selections(base, {})
        connection.execute(
            text("CREATE TEMPORARY TABLE keys AS SELECT 5::bigint AS student_id, 7::bigint test_id")
        )
        connection.execute(text(plan_setting(base)))
        read = selections.read("answers", "keys")
        return "\n".join(connection.execute(text(f"EXPLAIN {read}")).scalars())


@pytest.mark.parametrize(("shape", "way"), in_turns(SHAPES, WAYS))
def test_facts_are_exact_whatever_the_tables_of_the_owner_look_like(
    database: Database, spark: SparkSession, monkeypatch: pytest.MonkeyPatch, shape: str, way: str
) -> None:
    read_by(way, monkeypatch)
    add_sample(database, students=25, seed=13)
    execute(database, *SHAPES[shape])
    assert_exact(database, spark)


ODD_IDS = (
    "d'A",
    "back\\slash",
    '"quoted"',
    "{braces}",
    "a,b",
    "NULL",
    "",
    " ",
    "\u00fc",
    "$$",
    "%s",
    ":x",
)


@pytest.mark.parametrize("way", some_ways())
def test_texts_of_any_characters_may_be_ids(
    make_database: MakeDatabase, spark: SparkSession, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    read_by(way, monkeypatch)
    database = make_database(IdType.TEXT)
    rows = [{"n": str(number), "m": f"m{number}", "odd": odd} for number, odd in enumerate(ODD_IDS)]
    with database.engine().begin() as connection:
        for statement in (
            "INSERT INTO questions VALUES (:odd, 'A')",
            "INSERT INTO sessions VALUES (:odd, '2024-01-01 09:30Z')",
            "INSERT INTO answers VALUES (:n, :odd, :odd, :odd, :odd, 'A', '2024-01-01 09:20Z')",
            "INSERT INTO answers VALUES (:m, :odd, 'q', :odd, :odd, 'A', '2024-01-01 10:00Z')",
            "INSERT INTO submissions VALUES (:odd, :odd, '2024-01-01 09:50Z', 'completed')",
        ):
            connection.execute(text(statement), rows)
    assert_exact(database, spark)
    # The answers to `q` came too late.
    rows_of_facts = "SELECT count(*) FROM analytics.question_interaction_fact WHERE is_correct"
    assert scalar(database, rows_of_facts) == len(ODD_IDS)


@pytest.mark.parametrize("way", some_ways(1))
def test_ids_may_be_wider_in_submissions_than_in_answers(
    make_database: MakeDatabase, spark: SparkSession, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    read_by(way, monkeypatch)
    database = make_database(IdType.INTEGER)
    add_sample(database, students=25, seed=13)
    execute(
        database,
        "ALTER TABLE submissions ALTER student_id TYPE bigint, ALTER test_id TYPE bigint",
        "INSERT INTO submissions VALUES (5000000000, 1, '2024-01-01 09:30Z', 'completed'), "
        "(1, 6000000000, '2024-01-02 09:30Z', NULL)",
        "DROP SCHEMA analytics CASCADE",
    )
    with database.engine().begin() as connection:
        migrate(connection, "analytics", key_types(inspect_base_tables(connection, "public")))
    assert_exact(database, spark)


def assert_exact(database: Database, spark: SparkSession) -> None:
    """Run two days, the later one first; the facts are exact, and running again changes nothing."""
    for over in (LATE, EARLY):
        run_facts(database, spark, over)
        assert disagreements_now(database) == []
    assert wrong_rows(database) == []
    exact = contents(database)
    run_facts(database, spark, LATE)
    assert contents(database) == exact
