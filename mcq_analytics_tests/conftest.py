"""Fixtures: one server, a Spark session, a database per test from a template, an instance."""

from __future__ import annotations

import logging
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from dagster import DagsterInstance
from pyspark.sql import SparkSession
from sqlalchemy import text
from sqlalchemy.engine import URL

from mcq_analytics import initialize_spark_session_with_scaling
from mcq_analytics.alerting.send import AlertError, send_alert
from mcq_analytics.model.facts import IdType
from mcq_analytics.model.windows import last_closed_hour_end
from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.inspection import create_missing_base_tables, inspect_base_tables
from mcq_analytics.postgres.schema import key_types, migrate
from mcq_analytics.settings import AlertSettings
from mcq_analytics.spark.java import ensure_java
from mcq_analytics_tests.alert_servers import SECRETS, SlackServer, SmtpServer, running
from mcq_analytics_tests.clusters import Cluster, spark_cluster
from mcq_analytics_tests.servers import CHECKOUT, OwnServer, embedded_server
from mcq_analytics_tests.spark_servers import (
    COLD,
    java_of,
    suite_cluster_is_used,
    suite_server,
    suite_server_is_used,
    workers_of,
)
from mcq_analytics_tests.tally import TALLY

LONG = {
    f"test_{name}"
    for name in ("agreement", "backfills", "cluster", "secrets", "services", "spark_server", "ui")
}
SETTINGS = ("MCQ_", "DB_", "SPARK_", "ALERT_", "SLACK_", "SMTP_", "DAGSTER_")

SLOW_FIXTURES = {"server", "own_server", "spark", "slack", "smtp", "closed"}
SLOW_NAMES = {"subprocess", "OwnServer"}
"""Names of a module whose tests start processes."""

FEW_PARTITIONS = ("spark.sql.shuffle.partitions", "2")

MakeDatabase = Callable[..., Database]
Refusal = Callable[[AlertSettings], AlertError]

# The duration of an example depends on the machine more than on the code.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.register_profile("fast", deadline=None, max_examples=5)
hypothesis.settings.load_profile("untimed")

# Tests run in one process, or in several that each take whole modules.
OF_PROCESS = (*COLD, "SPARK_LOCAL_IP", "SPARK_CONNECT_MODE_ENABLED", "DAGSTER_EVENT_BATCH_SIZE")
"""Variables that look like settings, and hold for the whole process."""
os.environ.update(COLD)

# A shell starts jobs in the background with Ctrl-C ignored, and so would all that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

WORKER = os.environ.get("PYTEST_XDIST_WORKER", "main")

_MINUTE = timedelta(minutes=1)
_numbers = count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long modules first, and mark tests as `fast` that `make test-fast` runs.

    Those use no server, no Spark and no process. A long module that begins last would keep one
    process busy after all others have ended.
    """
    items.sort(key=lambda item: item.path.stem not in LONG)
    for item in items:
        assert isinstance(item, pytest.Function)
        if item.get_closest_marker("own_java") and suite_server_is_used():
            item.add_marker(pytest.mark.skip("looks into Java: make test runs it without a server"))
        if SLOW_FIXTURES.isdisjoint(item.fixturenames) and SLOW_NAMES.isdisjoint(vars(item.module)):
            item.add_marker("fast")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send this process's counts to the main one, if it is one of several."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["tally"] = dict(TALLY)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add the counts of another process."""
    TALLY.update(getattr(node, "workeroutput", {}).get("tally", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the counts."""
    if TALLY:
        terminalreporter.section("tried")
        terminalreporter.line(", ".join(f"{what}: {count:,}" for what, count in TALLY.items()))


@pytest.fixture
def closed() -> datetime:
    """The end of the last closed hour; no other hour closes within a minute."""
    while last_closed_hour_end(datetime.now(timezone.utc) + _MINUTE) != last_closed_hour_end():
        time.sleep(1)
    return last_closed_hour_end()


@pytest.fixture(scope="session")
def server_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The server's folder, shared by all processes of the session."""
    own = tmp_path_factory.getbasetemp()
    return (own if WORKER == "main" else own.parent) / "server"


@pytest.fixture(scope="session")
def server(server_home: Path) -> Iterator[URL]:
    """A PostgreSQL server for the whole session."""
    with embedded_server(server_home) as url:
        yield url


@pytest.fixture(scope="session")
def own_server() -> Iterator[OwnServer]:
    """A second server that a test may kill; of another version if one is installed."""
    found = OwnServer()
    found.start()
    yield found
    found.end()


@pytest.fixture(autouse=True)
def _clean_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide all settings from a test but its own, and let it write under its own folder."""
    for name in list(os.environ):
        if name.startswith(SETTINGS) and name not in OF_PROCESS:
            monkeypatch.delenv(name)
    monkeypatch.setattr("mcq_analytics.masking._remembered", set())
    monkeypatch.setenv("MCQ_HOME", str(tmp_path / ".mcq"))
    monkeypatch.chdir(tmp_path)


def create_database(server: URL, name: str, template: str | None = None) -> URL:
    """Create a database on a server, from a template if given, and return its URL.

    The name gets a suffix per process: other processes use the same server.
    """
    own = f"{name}_{WORKER}"
    engine = Database(server, "public", "analytics").engine()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        source = f' TEMPLATE "{template}"' if template else ""
        connection.execute(text(f'CREATE DATABASE "{own}"{source}'))
    return server.set(database=own)


def drop_database(url: URL) -> None:
    """Drop a database, ending all connections to it."""
    engine = Database(url.set(database="postgres"), "public", "analytics").engine()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f'DROP DATABASE "{url.database}" WITH (FORCE)'))


def end_sessions(url: URL) -> None:
    """End all connections to a database, so that it can serve as a template."""
    engine = Database(url.set(database="postgres"), "public", "analytics").engine()
    with engine.begin() as connection:
        connection.execute(
            text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"),
            {"name": url.database},
        )


def template_maker(server: URL) -> Callable[[IdType], str]:
    """Return a function that returns a template with base tables and fact schema per id type."""

    @cache
    def template(id_type: IdType) -> str:
        url = create_database(server, f"template_{id_type.value}")
        database = Database(url, "public", "analytics")
        try:
            with database.engine().begin() as connection:
                create_missing_base_tables(connection, "public", id_type)
                base = inspect_base_tables(connection, "public")
                migrate(connection, "analytics", key_types(base))
        except Exception:
            # The next test tries again, and fails with the same error.
            drop_database(url)
            raise
        return str(url.database)

    return template


@pytest.fixture(scope="session")
def templates(server: URL) -> Callable[[IdType], str]:
    """Template databases on the session's server."""
    return template_maker(server)


@pytest.fixture(scope="session")
def own_templates(own_server: OwnServer) -> Callable[[IdType], str]:
    """Template databases on the second server."""
    return template_maker(own_server.url())


@contextmanager
def made_databases(server: URL, templates: Callable[[IdType], str]) -> Iterator[MakeDatabase]:
    """Yield a function that creates a database, from a template or empty; drop all at the end."""
    urls = []

    def make(id_type: IdType | None = IdType.BIGINT) -> Database:
        template = templates(id_type) if id_type else None
        urls.append(create_database(server, f"test_{next(_numbers)}", template))
        return Database(urls[-1], "public", "analytics")

    yield make
    for url in urls:
        drop_database(url)


@pytest.fixture
def make_database(
    server: URL, templates: Callable[[IdType], str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[MakeDatabase]:
    """Return a function that creates a database and points DB_DEV_URL to it."""
    with made_databases(server, templates) as make:

        def make_and_name(id_type: IdType | None = IdType.BIGINT) -> Database:
            database = make(id_type)
            monkeypatch.setenv("DB_DEV_URL", database.url.render_as_string(hide_password=False))
            return database

        yield make_and_name


@pytest.fixture
def database(make_database: MakeDatabase) -> Database:
    """A fresh database with empty base tables (bigint ids) and the fact schema."""
    return make_database()


@pytest.fixture
def empty_database(make_database: MakeDatabase) -> Database:
    """A fresh database without tables."""
    return make_database(None)


@pytest.fixture(scope="session")
def spark(
    of_suite_server: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> SparkSession:
    """The Spark session of the process, set for many small queries; it retries failed tasks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MCQ_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("SPARK_LOCAL_MASTER", "local[2,3]")
        for name, value in of_suite_server.items():
            patch.setenv(name, value)
        cluster = of_suite_server.get("MCQ_SPARK_CLUSTER", "local")
        session = initialize_spark_session_with_scaling(cluster, 0)
    session.conf.set(*FEW_PARTITIONS)
    return session


@pytest.fixture
def resized(spark: SparkSession) -> Iterator[SparkSession]:
    """The same session, for a test that sets it for other loads."""
    yield spark
    initialize_spark_session_with_scaling("local", 0)
    spark.conf.set(*FEW_PARTITIONS)


@pytest.fixture(scope="session")
def suite_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster | None]:
    """The cluster on which the suite's server computes, if it has one."""
    if not suite_cluster_is_used():
        yield None
        return
    assert WORKER == "main", "one process alone can use MCQ_TEST_SPARK=cluster"
    directory = tmp_path_factory.mktemp("suite_cluster")
    with spark_cluster(directory, ensure_java(directory)) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def of_suite_server(
    suite_cluster: Cluster | None, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """The settings by which other processes compute on the suite's server, if there is one."""
    if not suite_server_is_used():
        return {}
    settings = {} if suite_cluster is None else suite_cluster.settings("standalone")
    return suite_server(tmp_path_factory.getbasetemp(), **settings).as_cluster("suite")


@pytest.fixture(scope="session")
def python_workers(
    spark: SparkSession, suite_cluster: Cluster | None, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], list[int]]:
    """The ids of the Python workers in which the session computes now."""

    def found() -> list[int]:
        if suite_cluster is not None:
            javas = suite_cluster.executors()
        elif suite_server_is_used():
            javas = [suite_server(tmp_path_factory.getbasetemp()).java()]
        else:
            javas = [java_of(os.getpid())]
        return [worker for java in javas for worker in workers_of(java)]

    return found


@pytest.fixture(scope="session")
def dagster_template(server: URL, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A template with the tables of a Dagster instance, without records."""
    url = create_database(server, "template_records")
    with pytest.MonkeyPatch.context() as patch:
        text_of_url = url.render_as_string(hide_password=False)
        with opened_instance(text_of_url, tmp_path_factory.mktemp("template"), patch) as instance:
            assert instance.get_runs() == []
    end_sessions(url)
    return str(url.database)


@contextmanager
def opened_instance(
    url: str, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[DagsterInstance]:
    """Yield an instance with the checkout's dagster.yaml and its records at a URL."""
    home = directory / "dagster_home"
    home.mkdir()
    (home / "dagster.yaml").write_text((CHECKOUT / "dagster.yaml").read_text())
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    monkeypatch.setenv("MCQ_DAGSTER_URL", url)
    with DagsterInstance.get() as found:
        yield found


@pytest.fixture
def instance(
    server: URL, dagster_template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[DagsterInstance]:
    """A Dagster instance without records."""
    url = create_database(server, "records", dagster_template)
    with opened_instance(url.render_as_string(hide_password=False), tmp_path, monkeypatch) as found:
        yield found
    drop_database(url)


@pytest.fixture
def slack(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlackServer]:
    """An HTTP server that answers like Slack."""
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    server = SlackServer()
    with running(server, server.released):
        yield server


@pytest.fixture
def smtp() -> Iterator[SmtpServer]:
    """A mail server."""
    server = SmtpServer()
    with running(server, server.released):
        yield server


@pytest.fixture
def refusal(caplog: pytest.LogCaptureFixture) -> Refusal:
    """Send an alert that is refused; check that the error is one line, and shows no secret."""

    def refused(settings: AlertSettings) -> AlertError:
        caplog.set_level(logging.DEBUG)
        with pytest.raises(AlertError) as caught:
            send_alert("the last two runs failed", settings)
        shown = "".join(traceback.format_exception(caught.value))
        assert len(str(caught.value).splitlines()) == 1
        for secret in SECRETS:
            assert secret not in str(caught.value)
            assert secret not in shown
            assert secret not in caplog.text
        return caught.value

    return refused
