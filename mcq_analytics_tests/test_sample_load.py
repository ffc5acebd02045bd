"""Loading a sample: its ids continue after the existing ones, and indexes end as they were."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import text

from mcq_analytics.errors import McqError
from mcq_analytics.model.facts import IdType
from mcq_analytics.postgres.database import Database
from mcq_analytics_tests.conftest import MakeDatabase, made_databases
from mcq_analytics_tests.depth import in_turns
from mcq_analytics_tests.facts_of import add_sample, execute, scalar
from mcq_analytics_tests.servers import OwnServer

BASE_TABLES = ("answers", "questions", "sessions", "submissions")
ID_TYPES = pytest.mark.parametrize("id_type", list(IdType), ids=lambda kind: kind.value)
# The tables that hold the ids of each entity.
PLACES = {
    "answer_id": ("answers",),
    "student_id": ("answers", "submissions"),
    "question_id": ("answers", "questions"),
    "test_id": ("answers", "submissions"),
    "session_id": ("answers", "sessions"),
}
INDEXES = """
    SELECT x.relname, x.oid, pg_get_indexdef(x.oid)
    FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
    WHERE x.relnamespace = CAST(:schema AS regnamespace) ORDER BY x.relname
"""
RULES = """
    SELECT c.conrelid::regclass || ' ' || c.conname || ' ' || pg_get_constraintdef(c.oid)
    FROM pg_constraint c WHERE c.connamespace = CAST(:schema AS regnamespace)
    UNION ALL
    SELECT a.attrelid::regclass || '.' || a.attname || ' is not null'
    FROM pg_attribute a JOIN pg_class t ON t.oid = a.attrelid
    WHERE t.relnamespace = CAST(:schema AS regnamespace) AND t.relkind = 'r' AND a.attnotnull
    ORDER BY 1
"""


def indexes(database: Database) -> dict[str, tuple[int, str]]:
    """Return the OID and the definition of each index of the base tables."""
    with database.engine().connect() as connection:
        rows = connection.execute(text(INDEXES), {"schema": database.source_schema})
        return {row[0]: (row[1], row[2]) for row in rows}


def rules(database: Database) -> list[str]:
    """Return the constraints of the base tables."""
    with database.engine().connect() as connection:
        parameters = {"schema": database.source_schema}
        return list(connection.execute(text(RULES), parameters).scalars())


def load(database: Database) -> dict[str, int]:
    return add_sample(database, students=20, seed=7)


def check_indexes_are_created_again_as_they_were(database: Database) -> None:
    before, rules_before = indexes(database), rules(database)
    counts = load(database)
    after = indexes(database)
    assert {name: index[1] for name, index in after.items()} == {
        name: index[1] for name, index in before.items()
    }
    assert rules(database) == rules_before
    assert len(after) == 7
    assert not {number for number, _ in before.values()} & {number for number, _ in after.values()}
    for table, count in counts.items():
        assert scalar(database, f"SELECT count(*) FROM {table}") == count > 0


@pytest.mark.parametrize("id_type", list(IdType), ids=lambda kind: kind.value)
def test_indexes_of_empty_tables_are_created_again_after_the_rows(
    make_database: MakeDatabase, id_type: IdType
) -> None:
    check_indexes_are_created_again_as_they_were(make_database(id_type))


def test_indexes_are_created_again_on_another_version_of_the_server(
    own_server: OwnServer, own_templates: Callable[[IdType], str]
) -> None:
    with made_databases(own_server.url(), own_templates) as make:
        check_indexes_are_created_again_as_they_were(make())


def test_tables_that_have_rows_keep_their_indexes(database: Database) -> None:
    load(database)
    before = indexes(database)
    load(database)
    assert indexes(database) == before


def test_an_index_of_the_owner_or_with_extra_properties_stays(
    database: Database,
) -> None:
    execute(
        database,
        "CREATE INDEX by_option ON answers (submitted_option)",
        "CREATE UNIQUE INDEX one_a_moment ON answers (answer_id, timestamp)",
        "COMMENT ON INDEX submissions_submit_time_idx IS 'needed by support'",
        "ALTER INDEX answers_timestamp_idx SET (fillfactor = 70)",
        "ALTER TABLE answers CLUSTER ON answers_student_id_test_id_idx",
        "ALTER TABLE submissions ADD FOREIGN KEY (test_id) REFERENCES questions",
        "ALTER TABLE submissions DISABLE TRIGGER ALL",
        "CREATE VIEW latest AS SELECT session_id, expiry_time FROM sessions GROUP BY session_id",
    )
    before, rules_before = indexes(database), rules(database)
    load(database)
    after = indexes(database)
    kept = {name for name, index in before.items() if after[name] == index}
    assert kept == {
        "by_option",
        "one_a_moment",
        "submissions_submit_time_idx",
        "answers_timestamp_idx",
        "answers_student_id_test_id_idx",
        "questions_pkey",
        "sessions_pkey",
    }
    assert {name: index[1] for name, index in after.items()} == {
        name: index[1] for name, index in before.items()
    }
    assert rules(database) == rules_before


def test_a_role_that_may_only_insert_can_add_a_sample(database: Database) -> None:
    execute(
        database,
        "CREATE ROLE filler LOGIN",
        "GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA public TO filler",
    )
    before = indexes(database)
    counts = load(Database(database.url.set(username="filler"), "public", "analytics"))
    assert scalar(database, "SELECT count(*) FROM answers") == counts["answers"] > 0
    assert indexes(database) == before
    execute(database, "DROP OWNED BY filler", "DROP ROLE filler")


def test_a_sample_that_is_refused_leaves_tables_and_indexes_as_they_were(
    database: Database,
) -> None:
    execute(database, "ALTER TABLE submissions ADD CHECK (completion_status <> 'timeout')")
    before, rules_before = indexes(database), rules(database)
    with pytest.raises(McqError, match="violates check constraint"):
        load(database)
    assert indexes(database) == before
    assert rules(database) == rules_before
    assert scalar(database, "SELECT count(*) FROM answers") == 0


def ids(database: Database, column: str) -> set[str]:
    """Return all ids of an entity in all tables, as texts."""
    selects = " UNION ".join(f"SELECT {column}::text FROM {table}" for table in PLACES[column])
    with database.engine().connect() as connection:
        return {row for row in connection.execute(text(selects)).scalars() if row is not None}


def check_new_ids_only(database: Database, **sample: int) -> None:
    """Add a sample and check that it has no existing id of any entity, in any table."""
    execute(
        database,
        *("DROP SCHEMA IF EXISTS before CASCADE", "CREATE SCHEMA before"),
        *(f"CREATE TABLE before.{table} AS TABLE {table}" for table in BASE_TABLES),
    )
    before = {column: ids(database, column) for column in PLACES}
    add_sample(database, **sample)
    for column, tables in PLACES.items():
        added = " UNION ".join(
            f"(SELECT {column}::text FROM {table} WHERE {column} IS NOT NULL "
            f"EXCEPT ALL SELECT {column}::text FROM before.{table})"
            for table in tables
        )
        with database.engine().connect() as connection:
            new = set(connection.execute(text(added)).scalars())
        assert new
        assert new.isdisjoint(before[column]), column


@ID_TYPES
def test_ids_of_samples_of_any_size_continue_after_the_existing_ones(
    make_database: MakeDatabase, id_type: IdType
) -> None:
    database = make_database(id_type)
    for students, hours, seed in ((2, 3, 1), (60, 48, 1), (2, 3, 5), (90, 96, 1), (60, 48, 1)):
        check_new_ids_only(database, students=students, hours=hours, seed=seed)


@pytest.mark.parametrize(("emptied", "id_type"), in_turns(BASE_TABLES, list(IdType)))
def test_ids_continue_after_those_of_every_table_even_after_deletes(
    make_database: MakeDatabase, id_type: IdType, emptied: str
) -> None:
    database = make_database(id_type)
    load(database)
    check_new_ids_only(database, students=5, seed=3)
    oldest = {
        "answers": "answer_id",
        "questions": "question_id",
        "sessions": "session_id",
        "submissions": "student_id",
    }[emptied]
    execute(
        database,
        f"DELETE FROM {emptied} WHERE {oldest} IN "
        f"(SELECT {oldest} FROM {emptied} ORDER BY md5({oldest}::text) "
        f"LIMIT (SELECT count(*) * 2 / 3 FROM {emptied}))",
    )
    check_new_ids_only(database, students=20, seed=7)
    execute(database, f"TRUNCATE {emptied}")
    check_new_ids_only(database, students=20, seed=7)


def test_ids_continue_in_a_varchar_too(make_database: MakeDatabase) -> None:
    database = make_database(IdType.TEXT)
    execute(
        database,
        *(
            f"ALTER TABLE {table} ALTER {column} TYPE varchar(20)"
            for column, tables in PLACES.items()
            for table in tables
        ),
    )
    for seed in (1, 2):
        check_new_ids_only(database, students=20, seed=seed)


def test_text_ids_of_other_forms_do_not_count_and_do_not_collide(
    make_database: MakeDatabase,
) -> None:
    database = make_database(IdType.TEXT)
    execute(
        database,
        "INSERT INTO questions SELECT unnest(ARRAY['question-7', 'question-000012x', 'Q9', '', "
        "'question-9999999999999999999999999', 'question-0000040', 'question-000002' || chr(10), "
        "'question-000020', 'question--00030', 'student-000900', ' question-000800']), 'A'",
    )
    load(database)
    made = "SELECT min(question_id) FROM questions WHERE question_id ~ '^question-[0-9]{6,9}$' "
    assert str(scalar(database, made + "AND question_id > 'question-000020'")) >= "question-000041"
    assert str(scalar(database, made + "AND question_id > 'question-000020'")) < "question-000060"


def test_foreign_uuids_and_numbers_do_not_collide(make_database: MakeDatabase) -> None:
    uuids = make_database(IdType.UUID)
    execute(
        uuids,
        "INSERT INTO sessions SELECT gen_random_uuid() FROM generate_series(1, 1000)",
        "INSERT INTO sessions VALUES ('00000000-0000-0000-0000-000000000000'), "
        "('ffffffff-ffff-ffff-ffff-ffffffffffff')",
    )
    check_new_ids_only(uuids, students=20, seed=7)
    numbers = make_database(IdType.BIGINT)
    execute(
        numbers,
        "INSERT INTO sessions VALUES (-5), (4611686018427387904)",
        "INSERT INTO submissions VALUES (2000, 3000, now(), NULL)",
    )
    check_new_ids_only(numbers, students=20, seed=7)


@pytest.mark.parametrize(
    ("id_type", "greatest"),
    [
        (IdType.INTEGER, 2**31 - 1),
        (IdType.BIGINT, 2**63 - 1),
        (IdType.TEXT, "session-999999999999999999"),
    ],
    ids=lambda it: getattr(it, "value", str(it)),
)
def test_a_column_without_room_for_more_ids_is_named(
    make_database: MakeDatabase, id_type: IdType, greatest: object
) -> None:
    database = make_database(id_type)
    execute(database, f"INSERT INTO sessions VALUES ('{greatest}')")
    with pytest.raises(McqError, match=r"session_id has no room for more ids of the type"):
        load(database)
    assert scalar(database, "SELECT count(*) FROM questions") == 0


def test_a_column_that_is_too_narrow_for_the_next_number_is_named(database: Database) -> None:
    execute(
        database,
        "ALTER TABLE questions ALTER question_id TYPE integer",
        "INSERT INTO answers VALUES (1, 1, 3000000000, 1, 1, 'A', now())",
    )
    with pytest.raises(McqError, match=r"questions\.question_id has no room for more ids"):
        load(database)


@pytest.mark.parametrize("comment", ["NULL", "'Ours, not made by mcq-analytics'"])
def test_tables_that_we_did_not_create_keep_their_indexes(database: Database, comment: str) -> None:
    marked = "SELECT count(*) FROM pg_description WHERE description = :mark"
    with database.engine().connect() as connection:
        mark = {"mark": "Made by mcq-analytics init-db --base-tables"}
        assert connection.execute(text(marked), mark).scalar_one() == 4
    execute(database, *(f"COMMENT ON TABLE {table} IS {comment}" for table in BASE_TABLES))
    before, rules_before = indexes(database), rules(database)
    counts = load(database)
    assert indexes(database) == before
    assert rules(database) == rules_before
    assert scalar(database, "SELECT count(*) FROM answers") == counts["answers"] > 0
