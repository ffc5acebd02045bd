"""TLS to PostgreSQL: every connection is encrypted, and goes to the right server only."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyspark.sql import SparkSession
from sqlalchemy.engine import URL
from sqlalchemy.exc import OperationalError

from mcq_analytics.errors import McqError
from mcq_analytics.model.facts import IdType
from mcq_analytics.postgres.database import Database, open_database
from mcq_analytics.postgres.errors import explain
from mcq_analytics.settings import load_settings
from mcq_analytics_tests.conftest import create_database, template_maker
from mcq_analytics_tests.facts_of import execute, run_facts, scalar, window, wrong_rows
from mcq_analytics_tests.servers import OwnServer, self_signed_certificate, server_programs

HOUR = window("2024-01-01T09", "2024-01-01T10")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for `localhost`, but not for 127.0.0.1, and its key."""
    return self_signed_certificate(tmp_path_factory.mktemp("tls"), "DNS:localhost")


@pytest.fixture(scope="module")
def tls_url(certificate: tuple[Path, Path]) -> Iterator[URL]:
    """A database on a server that accepts only TLS."""
    said = subprocess.run(
        [server_programs() / "pg_config", "--configure"], capture_output=True, text=True, check=True
    )
    if "ssl" not in said.stdout:
        pytest.skip("the PostgreSQL that is installed here was built without TLS")
    server = OwnServer(certificate)
    server.start()
    name = template_maker(server.url())(IdType.BIGINT)
    yield create_database(server.url(server.port), "encrypted", name).set(host="localhost")
    server.end()


def with_tls(url: URL, root: Path, mode: str = "verify-full") -> URL:
    return url.update_query_dict({"sslmode": mode, "sslrootcert": str(root)})


def test_a_run_over_tls_is_encrypted_on_every_connection(
    tls_url: URL,
    certificate: tuple[Path, Path],
    spark: SparkSession,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = with_tls(tls_url, certificate[0]).render_as_string(hide_password=False)
    monkeypatch.setenv("DB_DEV_URL", url)
    database = open_database(load_settings())
    execute(
        database,
        "INSERT INTO answers SELECT n, n, 1, 1, 1, 'A', '2024-01-01 09:00Z' "
        "FROM generate_series(1, 9) n",
        "INSERT INTO submissions VALUES (1, 1, '2024-01-01 09:30Z', 'completed')",
    )
    run_facts(database, spark, HOUR)
    assert wrong_rows(database) == []
    # The server accepts nothing else over TCP; this connection confirms it.
    assert scalar(database, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()") is True


def refusal(url: URL) -> McqError:
    database = Database(url, "public", "analytics")
    with pytest.raises(OperationalError) as refused:
        scalar(database, "SELECT 1")
    return explain(refused.value, "connecting")


def test_a_server_without_a_trusted_certificate_gets_no_password(
    tls_url: URL, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    other, _ = self_signed_certificate(tmp_path, "DNS:localhost")
    for url in (
        with_tls(tls_url, other),
        with_tls(tls_url.set(host="127.0.0.1"), certificate[0]),
        with_tls(tls_url, tmp_path / "none.pem"),
    ):
        said = str(refusal(url))
        assert "the server's certificate is not trusted" in said
        assert "check sslrootcert and the host in the database URL" in said
        assert "s3cret-p4ss" not in said


def test_a_connection_without_tls_is_refused(tls_url: URL) -> None:
    said = str(refusal(tls_url.update_query_dict({"sslmode": "disable"})))
    assert "one side requires TLS and the other does not offer it" in said
