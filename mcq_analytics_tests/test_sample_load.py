"""How a sample gets into the base tables, and that their indexes are afterwards as before."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import text

from mcq_analytics.errors import McqError
from mcq_analytics.facts import IdType
from mcq_analytics.storage.database import Database
from mcq_analytics_tests.conftest import MakeDatabase, made_databases
from mcq_analytics_tests.facts_of import add_sample, execute, scalar
from mcq_analytics_tests.servers import OwnServer

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
    """Return the number and the definition of each index of the base tables."""
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


def check_indexes_are_made_again_as_they_were(database: Database) -> None:
    before, rules_before = indexes(database), rules(database)
    counts = load(database)
    after = indexes(database)
    assert {name: index[1] for name, index in after.items()} == {
        name: index[1] for name, index in before.items()
    }
    assert rules(database) == rules_before
    assert len(after) == 9
    assert not {number for number, _ in before.values()} & {number for number, _ in after.values()}
    for table, count in counts.items():
        assert scalar(database, f"SELECT count(*) FROM {table}") == count > 0


@pytest.mark.parametrize("id_type", list(IdType), ids=lambda kind: kind.value)
def test_the_indexes_of_empty_tables_are_made_after_the_rows_as_they_were(
    make_database: MakeDatabase, id_type: IdType
) -> None:
    check_indexes_are_made_again_as_they_were(make_database(id_type))


def test_so_they_are_on_the_other_server(
    own_server: OwnServer, own_templates: Callable[[IdType], str]
) -> None:
    with made_databases(own_server.url(), own_templates) as make:
        check_indexes_are_made_again_as_they_were(make())


def test_tables_that_have_rows_keep_their_indexes(database: Database) -> None:
    load(database)
    before = indexes(database)
    load(database)
    assert indexes(database) == before


def test_an_index_stays_that_is_the_owners_or_of_which_something_would_be_lost(
    database: Database,
) -> None:
    execute(
        database,
        "CREATE INDEX by_option ON answers (submitted_option)",
        "CREATE UNIQUE INDEX one_a_moment ON answers (answer_id, timestamp)",
        "COMMENT ON INDEX answers_session_id_idx IS 'asked for by support'",
        "ALTER INDEX answers_timestamp_idx SET (fillfactor = 70)",
        "ALTER TABLE answers CLUSTER ON answers_test_id_question_id_idx",
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
        "answers_session_id_idx",
        "answers_timestamp_idx",
        "answers_test_id_question_id_idx",
        "questions_pkey",
        "sessions_pkey",
    }
    assert {name: index[1] for name, index in after.items()} == {
        name: index[1] for name, index in before.items()
    }
    assert rules(database) == rules_before


def test_who_may_only_add_rows_can_add_a_sample(database: Database) -> None:
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
