"""No secret reaches a record or an output: events, runs, logs, etl_metadata, Spark's pages."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import adbc_driver_postgresql.dbapi
import pytest
from dagster import DagsterInstance
from sqlalchemy import text
from sqlalchemy.engine import URL

from mcq_analytics.masking import mask
from mcq_analytics.model.facts import FACTS, IdType
from mcq_analytics.postgres.database import Database, open_database
from mcq_analytics.settings import load_settings
from mcq_analytics_tests.conftest import create_database, drop_database, opened_instance
from mcq_analytics_tests.facts_of import execute, scalar, wrong_rows
from mcq_analytics_tests.servers import CHECKOUT, OwnServer

PASSWORD = "s3cret p4ss%@/'\\é"
WRONG_PASSWORD = "wr0ng p4zz%@/'\\é"
WEBHOOK = "http://127.0.0.1:1/services/s3cret-h00k"
SECRETS = ("s3cret", "p4ss", "wr0ng", "p4zz", "h00k")
"""Parts of the secrets that no encoding changes."""
WITH_PAGES = "spark.ui.enabled=true;spark.ui.port=0"


@pytest.fixture
def protected(
    own_server: OwnServer, own_templates: Callable[[IdType], str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Database]:
    """A database with a password, and with spaces and special characters in all names."""
    owner = own_server.url(own_server.port)
    quoted = PASSWORD.replace("'", "''")
    execute(
        Database(owner, "public", "analytics"),
        f"CREATE ROLE \"odd us@r\" SUPERUSER LOGIN PASSWORD '{quoted}'",
    )
    odd = owner.set(username="odd us@r", password=PASSWORD)
    url = create_database(odd, "a b/c", own_templates(IdType.BIGINT))
    monkeypatch.setenv("DB_DEV_URL", as_settings_have_it(url))
    monkeypatch.setenv("ALERT_METHOD", "slack")
    monkeypatch.setenv("SLACK_WEBHOOK_URL", WEBHOOK)
    database = Database(url, "public", "analytics")
    execute(
        database,
        "INSERT INTO answers SELECT n, n, 1, 1, 1, 'A', '2024-01-01 09:00Z' "
        "FROM generate_series(1, 9) n",
        "INSERT INTO submissions VALUES (1, 1, '2024-01-01 09:30Z', 'completed')",
    )
    yield database
    drop_database(url)
    execute(Database(owner, "public", "analytics"), 'DROP ROLE "odd us@r"')


def as_settings_have_it(url: URL, *, with_password: bool = True) -> str:
    user, password, name = (
        quote(part or "", safe="") for part in (url.username, url.password, url.database)
    )
    given = f":{password}" if with_password else ""
    return f"postgresql://{user}{given}@{url.host}:{url.port}/{name}"


@pytest.fixture
def recorded(
    protected: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[DagsterInstance]:
    """An instance whose records need the same password."""
    url = create_database(protected.url, "records, too")
    with opened_instance(as_settings_have_it(url), tmp_path, monkeypatch) as instance:
        yield instance
    drop_database(url)


def call(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def all_text(database: Database, schema: str) -> str:
    """Return the contents of all tables in a schema, as text."""
    with database.engine().connect() as connection:
        tables = connection.execute(
            text("SELECT tablename FROM pg_tables WHERE schemaname = :schema"), {"schema": schema}
        ).scalars()
        return "\n".join(
            row
            for table in tables.all()
            for row in connection.execute(
                text(f'SELECT t::text FROM {schema}."{table}" t')
            ).scalars()
        )


def test_no_secret_is_in_any_record_log_or_page(
    protected: Database, recorded: DagsterInstance, tmp_path: Path
) -> None:
    materialize = (
        *("dagster", "asset", "materialize", "-m", "mcq_analytics.definitions"),
        *("--select", ",".join(fact.name for fact in FACTS), "--partition", "2024-01-01-09:00"),
    )
    made = call("mcq_analytics", "init-db")
    assert made.returncode == 0, made.stderr
    pages = call(
        *("mcq_analytics_tests.spark_pages", "2024-01-01T09:00", "2024-01-01T10:00"),
        SPARK_LOCAL_CONF=WITH_PAGES,
    )
    assert pages.returncode == 0, pages.stderr
    assert "mcq_postgres" in pages.stdout
    assert wrong_rows(protected) == []
    wrong = as_settings_have_it(protected.url.set(password=WRONG_PASSWORD))
    failed = call(*materialize, DB_DEV_URL=wrong)
    assert "password authentication failed" in failed.stdout + failed.stderr
    refused = call("mcq_analytics", "run", "--verbose", DB_DEV_URL=wrong)
    assert refused.returncode == 1
    alert = call("mcq_analytics", "alert-test", "--verbose")
    assert alert.returncode == 1

    url = load_settings().dagster_url
    assert url is not None
    records = Database(url, "public", "analytics")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    texts = {
        "Spark's pages": pages.stdout,
        "what is printed": "".join(
            one.stdout + one.stderr for one in (made, pages, failed, refused, alert)
        ),
        "Dagster's records": all_text(records, "public"),
        "the fact schema": all_text(protected, "analytics"),
        "files": "\n".join(path.read_text(errors="replace") for path in files),
    }
    for where, content in texts.items():
        for secret in SECRETS:
            assert secret not in content, where
    # The searched texts are the right ones.
    assert "mcq_postgres" in texts["Spark's pages"]
    assert "password authentication failed" in texts["Dagster's records"]
    assert "test_funnel_fact" in texts["Dagster's records"]
    logs = [path for path in files if "compute_logs" in path.parts]
    assert any("STEP_FAILURE" in path.read_text() for path in logs)
    assert scalar(protected, "SELECT count(*) FROM analytics.etl_metadata") == len(FACTS)


@pytest.mark.parametrize("in_url", [False, True], ids=["no password", "another password"])
def test_a_password_variable_wins_over_the_url_and_needs_no_encoding(
    protected: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_url: bool
) -> None:
    records = create_database(protected.url, "records, too")
    for name, url in (("DB_DEV", protected.url), ("MCQ_DAGSTER", records)):
        wrong = url.set(password=WRONG_PASSWORD)
        monkeypatch.setenv(f"{name}_URL", as_settings_have_it(wrong, with_password=in_url))
        monkeypatch.setenv(f"{name}_PASSWORD", PASSWORD)
    try:
        opened = open_database(load_settings())
        with opened.engine().connect() as connection:
            assert connection.execute(text("SELECT current_user")).scalar() == "odd us@r"
        with adbc_driver_postgresql.dbapi.connect(opened.conninfo()) as through_arrow:
            assert through_arrow.adbc_get_info()["vendor_name"] == "PostgreSQL"
        written = os.environ["MCQ_DAGSTER_URL"]
        with opened_instance(written, tmp_path, monkeypatch) as instance:
            assert instance.get_runs() == []
    finally:
        drop_database(records)
    assert PASSWORD not in repr(load_settings())
    assert mask(f"<{PASSWORD}>") == "<***>"
