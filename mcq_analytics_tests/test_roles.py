"""The roles of `roles.sql`: their rights, and who can create them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL
from sqlalchemy.exc import ProgrammingError

from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.inspection import create_missing_base_tables, inspect_base_tables
from mcq_analytics.postgres.schema import key_types, migrate
from mcq_analytics_tests.conftest import create_database, drop_database
from mcq_analytics_tests.facts_of import execute, scalar
from mcq_analytics_tests.servers import OwnServer, run_roles


def assert_done(done: subprocess.CompletedProcess[str]) -> None:
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_roles_can_do_their_work_and_no_more(empty_database: Database) -> None:
    with empty_database.engine().begin() as connection:
        create_missing_base_tables(connection, "public")
    for _ in range(2):
        assert_done(run_roles(empty_database))
    execute(empty_database, "ALTER ROLE mcq_writer PASSWORD 'w'")
    writer = Database(empty_database.url.set(username="mcq_writer"), "public", "analytics")
    with writer.engine().begin() as connection:
        migrate(connection, "analytics", key_types(inspect_base_tables(connection, "public")))
        connection.execute(text("CREATE TEMPORARY TABLE touched (id bigint)"))
    execute(
        writer, "INSERT INTO analytics.test_funnel_fact VALUES (5, 1, 1, 0, 100, NULL, now(), 0, 0)"
    )
    for forbidden in (
        "INSERT INTO answers (answer_id) VALUES (1)",
        "UPDATE questions SET correct_option = 'A'",
        "DELETE FROM submissions",
        "CREATE INDEX ON answers (student_id)",
        "CREATE SCHEMA other",
    ):
        with pytest.raises(ProgrammingError, match=r"permission denied|must be owner"):
            execute(writer, forbidden)
    with empty_database.engine().connect() as connection:
        connection.execute(text("SET ROLE mcq_reader"))
        assert (
            connection.execute(text("SELECT count(*) FROM analytics.test_funnel_fact")).scalar()
            == 1
        )
        with pytest.raises(ProgrammingError, match="permission denied"):
            connection.execute(text("DELETE FROM analytics.test_funnel_fact"))


OF_ANOTHER = "ALTER TABLE sessions OWNER TO CURRENT_USER"


@dataclass(frozen=True)
class Owned:
    """A database with base tables, opened as its owner and as a superuser."""

    database: Database
    by_superuser: Database


@pytest.fixture(params=["server", "own_server"])
def owned(request: pytest.FixtureRequest) -> Iterator[Owned]:
    """A database whose owner may create roles but is no superuser, on two server versions."""
    server = request.getfixturevalue(request.param)
    url: URL = server.url() if isinstance(server, OwnServer) else server
    administration = Database(url, "public", "analytics")
    execute(
        administration,
        "DROP ROLE IF EXISTS mcq_writer, mcq_reader",
        "CREATE ROLE plain_owner LOGIN CREATEROLE PASSWORD 'p'",
    )
    made = create_database(url, "owned")
    execute(administration, f'ALTER DATABASE "{made.database}" OWNER TO plain_owner')
    as_owner = made.set(username="plain_owner", password="p")
    found = Owned(Database(as_owner, "public", "analytics"), Database(made, "public", "analytics"))
    # Since 15 the owner of the database owns the schema public.
    execute(found.by_superuser, "GRANT ALL ON SCHEMA public TO plain_owner WITH GRANT OPTION")
    with found.database.engine().begin() as connection:
        create_missing_base_tables(connection, "public")
    yield found
    drop_database(made)
    execute(administration, "DROP ROLE IF EXISTS mcq_writer, mcq_reader", "DROP ROLE plain_owner")


def make_facts(database: Database) -> None:
    with database.engine().begin() as connection:
        migrate(connection, "analytics", key_types(inspect_base_tables(connection, "public")))


def writer_of(database: Database) -> Database:
    execute(database, "ALTER ROLE mcq_writer PASSWORD 'w'")
    url = database.url.set(username="mcq_writer", password="w")
    return Database(url, "public", "analytics")


def rights(database: Database) -> list[list[str]]:
    """Return all roles, memberships, owners and privileges."""
    queries = (
        "SELECT rolname FROM pg_roles WHERE rolname ~ '^(mcq|plain)_'",
        "SELECT m FROM pg_auth_members m WHERE roleid::regrole::text ~ '^(mcq|plain)_'",
        "SELECT (nspname, nspowner::regrole, nspacl) FROM pg_namespace WHERE nspname !~ '^pg_'",
        "SELECT (oid::regclass, relowner::regrole, relacl) FROM pg_class WHERE oid > 16383",
        "SELECT d FROM pg_default_acl d",
        "SELECT datacl FROM pg_database WHERE datname = current_database()",
    )
    with database.engine().connect() as connection:
        return [
            sorted(str(one) for one in connection.execute(text(query)).scalars())
            for query in queries
        ]


def test_an_owner_without_superuser_rights_can_create_working_roles(owned: Owned) -> None:
    database = owned.database
    assert_done(run_roles(database))
    first = rights(database)
    assert_done(run_roles(database))
    assert rights(database) == first
    # The right to become the writer was granted for the script only.
    with pytest.raises(ProgrammingError, match="permission denied"):
        execute(database, "SET ROLE mcq_writer")
    writer = writer_of(database)
    make_facts(writer)
    execute(
        writer,
        "SELECT FROM answers",
        "CREATE TEMPORARY TABLE touched (id bigint)",
        "INSERT INTO analytics.test_funnel_fact VALUES (5, 1, 1, 0, 100, NULL, now(), 0, 0)",
    )
    for forbidden in ("DELETE FROM answers", "CREATE SCHEMA other"):
        with pytest.raises(ProgrammingError, match="permission denied"):
            execute(writer, forbidden)
    for table, may_read in (("analytics.test_funnel_fact", True), ("public.answers", False)):
        query = f"SELECT has_table_privilege('mcq_reader', '{table}', 'SELECT')"
        assert scalar(writer, query) is may_read


def test_the_owner_need_not_own_a_schema_that_is_open_to_all_as_before_15(owned: Owned) -> None:
    execute(
        owned.by_superuser,
        "ALTER SCHEMA public OWNER TO CURRENT_USER",
        "REVOKE ALL ON SCHEMA public FROM plain_owner, pg_database_owner",
        "GRANT ALL ON SCHEMA public TO PUBLIC",
    )
    done = run_roles(owned.database)
    assert done.returncode == 0, done.stderr
    assert "ERROR" not in done.stderr
    make_facts(writer_of(owned.database))


def test_facts_with_another_owner_are_given_to_the_writer_with_their_schema(owned: Owned) -> None:
    database = owned.database
    make_facts(database)
    execute(
        database,
        "CREATE UNLOGGED TABLE analytics.stg_test_funnel_fact_abc_rows (id bigint)",
        "CREATE VIEW analytics.of_an_analyst AS SELECT 1 AS one",
        "CREATE TABLE analytics.notes (id bigint)",
    )
    assert_done(run_roles(database))
    with database.engine().connect() as connection:
        owners: dict[str, str] = dict(
            connection.execute(
                text(
                    "SELECT relname, relowner::regrole::text FROM pg_class "
                    "WHERE relnamespace = 'analytics'::regnamespace"
                )
            )
            .tuples()
            .all()
        )
    others = {name for name, owner in owners.items() if owner != "mcq_writer"}
    assert others == {"of_an_analyst", "notes"}
    assert len(owners) > 15
    assert (
        scalar(
            database, "SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'analytics'"
        )
        == "mcq_writer"
    )
    assert (
        scalar(
            database,
            "SELECT bool_and(has_table_privilege('mcq_reader', oid, 'SELECT')) FROM pg_class "
            "WHERE relowner = 'mcq_writer'::regrole AND relkind = 'r'",
        )
        is True
    )
    make_facts(writer_of(database))


@pytest.mark.parametrize(
    ("options", "prepared", "said"),
    [
        (["-v", "source=nowhere"], [], 'schema "nowhere" does not exist'),
        (["-v", "facts=public"], [], "give the facts one of their own"),
        ([], ["CREATE SCHEMA analytics"], "the schema analytics belongs to"),
        (
            [],
            ["ALTER TABLE sessions OWNER TO CURRENT_USER"],
            "permission denied for table sessions",
        ),
        (
            [],
            [
                "ALTER TABLE sessions OWNER TO CURRENT_USER",
                "GRANT INSERT ON sessions TO plain_owner",
            ],
            "mcq_writer may not read public.sessions: let its owner grant that",
        ),
    ],
    ids=["no base tables", "one schema", "another's facts", "another's table", "not to be granted"],
)
def test_roles_are_created_completely_or_not_at_all(
    owned: Owned, options: list[str], prepared: list[str], said: str
) -> None:
    execute(owned.by_superuser, *prepared)
    before = rights(owned.database)
    done = run_roles(owned.database, *options)
    assert done.returncode == 3
    assert said in done.stderr
    assert rights(owned.database) == before
