"""All services of `deploy/` start by their own commands, and compute an hour."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path

import pytest
from sqlalchemy import text

from mcq_analytics.model.windows import HOUR
from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.inspection import create_missing_base_tables
from mcq_analytics_tests.conftest import drop_database
from mcq_analytics_tests.dagster_dev import Ui
from mcq_analytics_tests.facts_of import scalar, wrong_rows
from mcq_analytics_tests.image import Image
from mcq_analytics_tests.manifests import (
    CHOSEN,
    COMPOSE,
    ODD_PASSWORD,
    Service,
    services_of_kubernetes,
)
from mcq_analytics_tests.servers import OwnServer, free_port, listens, run_roles


@pytest.mark.timeout(600)
def test_all_services_start_with_their_own_commands_and_compute_an_hour(
    own_server: OwnServer, closed: datetime
) -> None:
    administration = own_server.url(own_server.port)
    ports = {"3000": 0, "5432": own_server.port}
    ports |= {port: free_port() for port in ("4000", "7077", "7078", "7079", "15002")}
    chosen = {
        **CHOSEN,
        "DB_PROD_URL": f"postgresql://mcq_writer@127.0.0.1:{own_server.port}/platform",
        "MCQ_PARTITION_START": (closed - HOUR).strftime("%Y-%m-%dT%H:%M"),
    }
    # `test_deploy` shows that Compose's are the same.
    services = services_of_kubernetes(chosen)
    records = services["dagster-db"].environment
    image = Image(ports)
    everything = Database(administration, "public", "analytics")
    with ExitStack() as stack:
        stack.callback(image.remove)
        run_statement(
            everything, f"CREATE ROLE {records['POSTGRES_USER']} LOGIN PASSWORD '{ODD_PASSWORD}'"
        )
        stack.callback(run_statement, everything, f"DROP ROLE {records['POSTGRES_USER']}")
        assert records["POSTGRES_PASSWORD"] == ODD_PASSWORD
        run_statement(
            everything,
            f"CREATE DATABASE {records['POSTGRES_DB']} OWNER {records['POSTGRES_USER']}",
        )
        stack.callback(drop_database, administration.set(database=records["POSTGRES_DB"]))
        # The platform's database does not exist yet: the code server starts nevertheless.
        code = services["code"]
        code_is_ready = stack.enter_context(image.started(code))
        stack.enter_context(image.started(services["spark-master"]))(lambda: listens(ports["7077"]))
        worker = stack.enter_context(image.started(services["spark-worker"]))
        log = image.logs / "spark-worker.log"
        worker(lambda: "Successfully registered with master" in log.read_text())
        spark = services["spark"]
        spark_is_ready = stack.enter_context(image.started(spark))
        code_is_ready(lambda: listens(ports["4000"]))
        code_is_ready(lambda: is_healthy(image, code))
        spark_is_ready(lambda: listens(ports["15002"]) and is_healthy(image, spark))
        webservers = {}
        waits = {}
        for name in ("webserver", "webserver-read-only"):
            port = free_port()
            webservers[name] = Ui(port, image.logs / f"{name}.log")
            waits[name] = stack.enter_context(image.started(services[name], port))
        for name, ui in webservers.items():
            waits[name](ui.is_ready)
        hour = {"dagster/partition": (closed - HOUR).strftime("%Y-%m-%d-%H:%M")}
        refused = webservers["webserver-read-only"].launch_answer(hour)
        assert refused["__typename"] == "UnauthorizedError"
        ui = webservers["webserver"]
        assert ui.ask("{ runsOrError { ... on Runs { count } } }")["runsOrError"] == {"count": 0}
        with urllib.request.urlopen(f"http://127.0.0.1:{ui.port}/server_info", timeout=30) as page:
            assert "dagster_version" in json.load(page)

        stack.enter_context(image.started(services["daemon"]))
        failed = image.run(services["init-db"], services["init-db"].command)
        assert failed.returncode == 1
        assert "the password or user is wrong" in failed.stderr
        platform = stack.enter_context(platform_database(everything, closed - HOUR))
        done = image.run(services["init-db"], services["init-db"].command)
        assert done.returncode == 0, done.stderr
        assert ui.wait_for_run(ui.launch(hour), 300) == "SUCCESS"
        assert wrong_rows(platform) == []
        assert scalar(platform, "SELECT count(*) FROM analytics.question_interaction_fact") == 9
        # The run was no application of its own: it computed on the Spark server's executors.
        assert len(applications_with_tasks(image.folder / "work")) == 1


def applications_with_tasks(work: Path) -> set[str]:
    logs = list(work.glob("app-*/*/stderr"))
    assert len({log.parts[-3] for log in logs}) == 1, logs
    return {log.parts[-3] for log in logs if "Running task" in log.read_text()}


def is_healthy(image: Image, service: Service) -> bool:
    healthcheck = COMPOSE["services"][service.name]["healthcheck"]["test"][1:]
    return image.run(service, healthcheck).returncode == 0


def run_statement(database: Database, statement: str) -> None:
    engine = database.engine().execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(statement.replace("%", "%%"))


@contextmanager
def platform_database(everything: Database, hour: datetime) -> Iterator[Database]:
    """Create the platform's database, its base tables with some rows, and the roles."""
    run_statement(everything, "CREATE DATABASE platform")
    url = everything.url.set(database="platform")
    database = Database(url, "public", "analytics")
    try:
        with database.engine().begin() as connection:
            create_missing_base_tables(connection, "public")
            connection.execute(
                text(
                    "INSERT INTO answers "
                    "SELECT n, n % 3, n, 1, 1, 'A', :at FROM generate_series(1, 9) n"
                ),
                {"at": hour},
            )
            connection.execute(
                text("INSERT INTO submissions VALUES (1, 1, :at, 'completed')"), {"at": hour}
            )
        assert run_roles(database).returncode == 0
        run_statement(database, f"ALTER ROLE mcq_writer PASSWORD '{ODD_PASSWORD}'")
        yield database
    finally:
        drop_database(url)
        run_statement(everything, "DROP ROLE IF EXISTS mcq_writer, mcq_reader")
