"""Database URLs: every character reaches the server, and a malformed URL is never quoted."""

from __future__ import annotations

from urllib.parse import quote, quote_plus

import click.testing
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from psycopg2.extensions import parse_dsn
from sqlalchemy import create_engine, event, make_url

from mcq_analytics.cli.app import main
from mcq_analytics.postgres.database import Database, libpq_parameters, sqlalchemy_text
from mcq_analytics.settings.database_urls import read_postgres_url

ODD = "p w%@/'\\é:?#&=+\"`$;,[]{}|<>^~!*() %20 %zz &amp; ü€\U0001f512"
texts = st.text(
    st.one_of(
        st.characters(codec="utf-8", exclude_categories=["Cc"]),
        st.sampled_from(" !\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~é€"),
    ),
    min_size=1,
    max_size=12,
)


class NotTriedError(Exception):
    """Stops an engine just before it connects."""


def given_to_psycopg2(database: Database) -> dict[str, object]:
    """Return the parameters that an engine passes to psycopg2."""
    engine = database.engine()
    found: dict[str, object] = {}

    def take(_: object, __: object, arguments: list[str], parameters: dict[str, object]) -> None:
        assert "".join(arguments) == ""
        found.update(parameters)
        raise NotTriedError

    event.listen(engine, "do_connect", take)
    with pytest.raises(NotTriedError):
        engine.connect()
    return found


def url_text(user: str, password: str, name: str) -> str:
    parts = [quote(part, safe="") for part in (user, password, name)]
    return "postgresql://{}:{}@db.example:6543/{}?sslmode=prefer".format(*parts)


def url_query(user: str, password: str, name: str) -> str:
    parts = [quote_plus(part) for part in (user, password, name)]
    return (
        "postgres:///?user={}&password={}&dbname={}&host=db.example&port=6543&sslmode=prefer"
    ).format(*parts)


@given(texts, texts, texts)
@example(ODD, ODD, ODD)
@example("u", "p w", "a b")
def test_every_character_of_a_url_reaches_every_kind_of_connection(
    user: str, password: str, name: str
) -> None:
    parts = {
        "user": user,
        "password": password,
        "dbname": name,
        "host": "db.example",
        "port": "6543",
        "sslmode": "prefer",
    }
    for written in (url_text(user, password, name), url_query(user, password, name)):
        url = read_postgres_url("DB_DEV_URL", written)
        assert (url.username, url.password, url.database) == (user, password, name)
        database = Database(url, "public", "analytics")
        for found in (given_to_psycopg2(database), parse_dsn(database.conninfo())):
            assert {key: found[key] for key in parts} == parts
        # Dagster's storage takes the URL as text.
        read = make_url(sqlalchemy_text(url))
        engine = create_engine(read)
        _, given_by_dagster = engine.dialect.create_connect_args(engine.url)
        assert {key: str(value) for key, value in given_by_dagster.items()} == parts


def test_sockets_and_several_hosts_are_passed_in_the_form_of_libpq() -> None:
    for written, host, port in (
        ("postgresql://u@%2Frun%2Fa%20b:5433/d", "/run/a b", "5433"),
        ("postgresql://u@/d?host=/run/a+b&port=5433", "/run/a b", "5433"),
        ("postgresql://u@[::1]:5433/d", "::1", "5433"),
        ("postgresql://u@a,b:5433/d", "a,b", "5433"),
        ("postgresql://u@/d?host=a:1&host=b:2", "a,b", "1,2"),
        ("postgresql://u@/d?host=a,b&port=1,2", "a,b", "1,2"),
    ):
        url = read_postgres_url("DB_DEV_URL", written)
        parts = libpq_parameters(url)
        assert (parts["host"], parts["port"]) == (host, port)
        engine = create_engine(sqlalchemy_text(url))
        _, told = engine.dialect.create_connect_args(engine.url)
        assert (told["host"], str(told["port"])) in ((host, port), (host, f"{port},{port}"))


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://u:p@Sup3r@host/db",
        "postgresql://u:p/@Sup3r@host/db",
        "postgresql://u:p@Sup3r/x@host/db",
        "postgresql://u:p@x/Sup3r@host/db",
        "postgresql://u:p@x?Sup3r@host/db",
        "postgresql://u:p@x?Sup3r=1@host/db",
        "postgresql://u:p@x:Sup3r@host/db",
        "postgresql://u:Sup3r/db",
        "postgresql://u:p@host:70000/Sup3r",
        "postgresql://u:p@host/db?passwort=Sup3r",
        "postgresql://u:p@host/db?port=Sup3r",
        "postgresql://u:Sup3r%00@host/db",
        "postgresql://u:Sup3r\nx@host/db",
        "Sup3r://u:p@host/db",
        "Sup3r",
    ],
)
@pytest.mark.parametrize("variable", ["DB_DEV_URL", "MCQ_DAGSTER_URL"])
def test_a_malformed_url_is_refused_without_quoting_it(
    text: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, text)
    result = click.testing.CliRunner().invoke(main, ["init-db", "--verbose"])
    assert result.exit_code == 1
    [line] = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert f"{variable} " in line
    assert "write it as postgresql://user:password@host:5432/database" in line
    assert "percent-encode special characters in the password (@ as %40)" in line
    assert f"or set {variable.replace('URL', 'PASSWORD')} to it" in line
    assert "Sup3r" not in result.output
