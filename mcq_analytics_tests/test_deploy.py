"""The manifests under `deploy/`: what schemas and settings say of them, and that all of it runs."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from dotenv import dotenv_values
from sqlalchemy import text

from mcq_analytics.model.windows import HOUR
from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.inspection import create_missing_base_tables
from mcq_analytics.spark.java import ensure_java
from mcq_analytics_tests.conftest import CHECKOUT, drop_database
from mcq_analytics_tests.dagster_dev import Ui
from mcq_analytics_tests.facts_of import scalar, wrong_rows
from mcq_analytics_tests.servers import OwnServer, free_port, listens, run_roles, wait_until

DEPLOY = CHECKOUT / "deploy"
KUSTOMIZATION: dict[str, Any] = yaml.safe_load(
    (DEPLOY / "kubernetes" / "kustomization.yaml").read_text()
)
MANIFESTS = [DEPLOY / "kubernetes" / name for name in KUSTOMIZATION["resources"]]
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
RESOURCES: list[dict[str, Any]] = [
    resource for path in MANIFESTS for resource in yaml.safe_load_all(path.read_text())
]
SECRETS = set(
    re.findall(r"--from-literal=(\w+)=", (DEPLOY / "kubernetes" / "kustomization.yaml").read_text())
)
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
PROGRAMS = Path(sys.executable).parent


def containers() -> Iterator[dict[str, Any]]:
    for resource in RESOURCES:
        pod = resource.get("spec", {}).get("template", {}).get("spec", {})
        yield from [*pod.get("initContainers", []), *pod.get("containers", [])]


def test_the_composition_is_one_by_its_schema() -> None:
    subprocess.run(
        [
            PROGRAMS / "check-jsonschema",
            "--builtin-schema",
            "vendor.compose-spec",
            DEPLOY / "compose.yaml",
        ],
        check=True,
    )


@pytest.mark.parametrize("version", ["1.30", "1.34", "1.37"])
def test_the_kubernetes_manifests_are_such_by_their_schema(version: str) -> None:
    options = ["--strict", "--kubernetes-version", version]
    subprocess.run([PROGRAMS / "kubernetes-validate", *options, *MANIFESTS], check=True)


def test_every_service_is_in_both() -> None:
    deployed = {resource["metadata"]["name"] for resource in RESOURCES if "spec" in resource}
    assert set(COMPOSE["services"]) - {"init-db"} <= deployed
    assert any(one["name"] == "init-db" for one in containers())


def test_the_settings_are_those_of_the_example() -> None:
    known = set(re.findall(r"^(?:# )?([A-Z_]+)=", (CHECKOUT / ".env.example").read_text(), re.M))
    known |= {"MCQ_CODE_HOST", "SPARK_STANDALONE_MASTER", "SPARK_STANDALONE_CONF"}
    [settings] = [one["data"] for one in RESOURCES if one["kind"] == "ConfigMap"]
    assert set(settings) <= known
    assert set(COMPOSE["x-service"]["environment"]) <= known
    assert known >= SECRETS
    assert {"DB_PROD_PASSWORD", "MCQ_DAGSTER_PASSWORD"} <= SECRETS


def pods() -> dict[str, dict[str, Any]]:
    return {
        resource["metadata"]["name"]: resource["spec"]["template"]["spec"]
        for resource in RESOURCES
        if "template" in resource.get("spec", {})
    }


def test_the_host_of_runs_keeps_its_name_so_that_dead_ones_are_known() -> None:
    assert COMPOSE["services"]["code"]["hostname"] == "code"
    # The master of Spark has the name at which it listens.
    named = {name: pod["hostname"] for name, pod in pods().items() if "hostname" in pod}
    assert named == {"code": "code", "spark-master": "spark-master"}


def test_nothing_waits_for_the_fact_schema_so_that_its_loss_is_told() -> None:
    for service in COMPOSE["services"].values():
        assert "init-db" not in service.get("depends_on", {})
    assert COMPOSE["services"]["init-db"]["restart"] == "on-failure"
    assert not any("initContainers" in pod for pod in pods().values())
    assert pods()["init-db"]["restartPolicy"] == "OnFailure"


def test_the_kustomization_names_every_manifest_and_makes_the_namespace_first() -> None:
    others = {path.name for path in (DEPLOY / "kubernetes").iterdir()} - {"kustomization.yaml"}
    assert sorted(KUSTOMIZATION["resources"]) == sorted(others)
    kinds = [resource["kind"] for resource in RESOURCES]
    assert kinds[0] == "Namespace"
    assert kinds.count("Namespace") == 1
    assert KUSTOMIZATION["sortOptions"] == {"order": "fifo"}
    # Settings, claims and rules are there before what needs them.
    for resource in RESOURCES[1:]:
        assert resource["metadata"]["namespace"] == RESOURCES[0]["metadata"]["name"]
    first_pod = next(at for at, one in enumerate(RESOURCES) if "template" in one.get("spec", {}))
    assert max(kinds.index("ConfigMap"), kinds.index("NetworkPolicy")) < first_pod


def test_the_image_is_named_in_one_place() -> None:
    [image] = KUSTOMIZATION["images"]
    assert {one["image"] for one in containers()} == {image["name"], "postgres:18"}
    named = f"{image['newName']}:{image['newTag']}"
    assert image["newTag"] == importlib.metadata.version("mcq_analytics")
    assert (DEPLOY / "compose.yaml").read_text().count(f"image: {named}") == 1
    assert {service["image"] for service in COMPOSE["services"].values()} == {named, "postgres:18"}


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kubectl_makes_of_the_kustomization_what_is_read_here() -> None:
    made = subprocess.run(
        ["kubectl", "kustomize", str(DEPLOY / "kubernetes")],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    [image] = KUSTOMIZATION["images"]
    expected = [
        yaml.safe_load(
            json.dumps(resource).replace(
                f'"image": "{image["name"]}"',
                f'"image": "{image["newName"]}:{image["newTag"]}"',
            )
        )
        for resource in RESOURCES
    ]
    assert list(yaml.safe_load_all(made)) == expected


def test_no_claim_needs_storage_that_several_machines_can_write() -> None:
    claims = {one["metadata"]["name"]: one for one in RESOURCES if one["kind"].endswith("Claim")}
    users = [
        (volume["persistentVolumeClaim"]["claimName"], name)
        for name, pod in pods().items()
        for volume in pod.get("volumes", [])
        if "persistentVolumeClaim" in volume
    ]
    assert dict(users).keys() == claims.keys()
    assert len(users) == len(claims)
    for name, claim in claims.items():
        assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
        [user] = [
            one
            for one in RESOURCES
            if one["metadata"]["name"] == dict(users)[name] and one["kind"] == "Deployment"
        ]
        # Two pods of one claim would wait for each other where they are on two machines.
        assert user["spec"]["replicas"] == 1
        assert user["spec"]["strategy"] == {"type": "Recreate"}


def test_nothing_is_published_but_on_loopback_and_no_secret_is_written_down() -> None:
    for service in COMPOSE["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    for resource in RESOURCES:
        assert resource["kind"] not in ("Secret", "Ingress")
        if resource["kind"] == "Service":
            assert resource["spec"].get("type", "ClusterIP") == "ClusterIP"
    for path in [*DEPLOY.glob("*.yaml"), *DEPLOY.glob("kubernetes/*.yaml")]:
        for line in path.read_text().splitlines():
            if re.search(r"(PASSWORD|TOKEN|WEBHOOK_URL)\w*: |://[^/\s]*:[^/\s]*@", line):
                assert "${" in line, line


def test_the_commands_are_the_same_in_both_and_there() -> None:
    given = {one["name"]: one.get("command", []) for one in containers()}
    for name, service in COMPOSE["services"].items():
        if "command" not in service:
            continue
        assert service["command"] == given[name]
        assert (PROGRAMS / service["command"][0]).exists()


def test_the_image_has_all_files_that_it_copies() -> None:
    copied = re.findall(r"^COPY (.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.M)
    for name in " ".join(copied).split():
        assert (CHECKOUT / name).exists()


WRITABLE = re.findall(r"mkdir (.+?) \\\n", DOCKERFILE)[0].split()
"""The folders of the image that its user may write to."""
ODD_PASSWORD = "p@ss%2F:w/?#&"


class Image:
    """A folder that stands for the image's, and a user who may read all, and write in few of it."""

    def __init__(self, ports: dict[str, int]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mcq_image_"))
        self.logs = Path(tempfile.mkdtemp(prefix="mcq_logs_"))
        self._ports = ports
        self._user = as_another_user()
        for name in (*WRITABLE, "home"):
            (self.folder / name).mkdir()
            if self._user:
                shutil.chown(self.folder / name, "nobody")
        for name in ("dagster.yaml", "deploy/workspace.yaml"):
            text = (CHECKOUT / name).read_text()
            (self.folder / Path(name).name).write_text(self.here(text, ports))
        self._java = ensure_java(self.folder / "home")
        self.folder.chmod(0o555)
        [self._set] = re.findall(r"^ENV ((?:.*\\\n)*.*)$", DOCKERFILE, re.M)

    def remove(self) -> None:
        self.folder.chmod(0o755)
        for folder in (self.folder, self.logs):
            shutil.rmtree(folder)

    def here(self, text: str, ports: dict[str, int]) -> str:
        """Return a text of a manifest with the folder, the hosts and the ports of this machine."""
        text = text.replace("/opt/mcq", str(self.folder))
        text = re.sub(r"\b(0\.0\.0\.0|spark-master|dagster-db)\b", "127.0.0.1", text)
        text = re.sub(r"(?<==)code\b|^code$", "127.0.0.1", text)
        return re.sub(r"\b(3000|4000|5432|7077)\b", lambda port: str(ports[port[0]]), text)

    def command(self, words: list[str], port: int | None = None) -> list[str]:
        ports = self._ports if port is None else {**self._ports, "3000": port}
        name, *arguments = (self.here(word, ports) for word in words)
        return [*self._user, str(PROGRAMS / name), *arguments]

    def environment(self, given: dict[str, str]) -> dict[str, str]:
        """Return the image's and the service's own environment, and what finds programs here."""
        image = dict(re.findall(r"(\w+)=(\S+)", self._set))
        ours = {name: self.here(value, self._ports) for name, value in {**image, **given}.items()}
        return {
            **ours,
            "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
            "HOME": str(self.folder / "home"),
            "JAVA_HOME": str(self._java),
            "PYTHONPATH": str(CHECKOUT),
            # Nothing listens but on loopback.
            "SPARK_LOCAL_IP": "127.0.0.1",
        }

    @contextmanager
    def started(
        self, service: Service, port: int | None = None
    ) -> Iterator[Callable[[Callable[[], bool]], None]]:
        """Run a service (a webserver at a port of its own); yield what waits until it is ready."""
        log = self.logs / f"{service.name}.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                self.command(service.command, port),
                cwd=self.folder,
                env=self.environment(service.environment),
                stdout=output,
                stderr=subprocess.STDOUT,
            )

        def wait(ready: Callable[[], bool]) -> None:
            wait_until(lambda: process.poll() is not None or ready())
            assert process.poll() is None, log.read_text()

        try:
            yield wait
            assert process.poll() is None, log.read_text()
        finally:
            family = []
            with suppress(psutil.NoSuchProcess):
                family = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
            process.wait(60)
            _, alive = psutil.wait_procs(family, timeout=30)
            for left in alive:
                left.kill()

    def run(self, service: Service, words: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(words),
            cwd=self.folder,
            env=self.environment(service.environment),
            check=False,
            capture_output=True,
            text=True,
        )


def as_another_user() -> list[str]:
    """Return what starts a command as a user without rights, where the tests' own has all.

    The user is one with a name, which Java asks for. It may read what the tests' user alone may,
    such as a Python under the home of root, where nothing else lets it.
    """
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        return []
    nobody = pwd.getpwnam("nobody")
    dropped = ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"]
    may_read = [
        f"--{kind}=-all,+dac_read_search" for kind in ("inh-caps", "ambient-caps", "bounding-set")
    ]
    for options in ([], may_read):
        command = [*dropped, *options]
        # By a shell, since setpriv itself starts its command with all rights.
        probe = [*command, "sh", "-c", '"$0" -c "import dagster"', sys.executable]
        if subprocess.run(probe, check=False, capture_output=True).returncode == 0:
            return command
    return []


@dataclass(frozen=True)
class Service:
    """A service of either kind of manifest."""

    name: str
    command: list[str]
    environment: dict[str, str]


def services_of_compose(chosen: dict[str, str], directory: Path) -> dict[str, Service]:
    """Return the services with what `.env` says."""
    dotenv = directory / ".env"
    dotenv.write_text("".join(f"{name}='{value}'\n" for name, value in chosen.items()))
    given = {name: value or "" for name, value in dotenv_values(dotenv).items()}
    found = {}
    for name, service in COMPOSE["services"].items():
        own = {
            key: re.sub(r"\$\{(\w+):\?[^}]*\}", lambda variable: given[variable[1]], value)
            for key, value in service.get("environment", {}).items()
        }
        environment = {**(given if "env_file" in service else {}), **own}
        found[name] = Service(name, service.get("command", []), environment)
    return found


def services_of_kubernetes(chosen: dict[str, str]) -> dict[str, Service]:
    """Return the services with the secret made, and the settings filled in, as it is said there."""
    [settings] = [one["data"] for one in RESOURCES if one["kind"] == "ConfigMap"]
    sources = {
        "configMapRef": {name: value or chosen[name] for name, value in settings.items()},
        "secretRef": {name: chosen[name] for name in SECRETS if name in chosen},
    }
    found = {}
    for service, pod in pods().items():
        [container] = pod["containers"]
        environment: dict[str, str] = {}
        for source in container.get("envFrom", []):
            [(kind, _)] = source.items()
            environment |= sources[kind]
        for variable in container.get("env", []):
            key = variable.get("valueFrom", {}).get("secretKeyRef", {}).get("key")
            environment[variable["name"]] = variable["value"] if key is None else chosen[key]
        found[service] = Service(service, container.get("command", []), environment)
    return found


CHOSEN = {
    "DB_PROD_PASSWORD": ODD_PASSWORD,
    "MCQ_DAGSTER_PASSWORD": ODD_PASSWORD,
    "MCQ_DAGSTER_WEBSERVER_URL": "https://dagster.example.org",
    "ALERT_METHOD": "slack",
    "SLACK_WEBHOOK_URL": "http://127.0.0.1:1/never",
    "MCQ_SOURCE_SCHEMA": "public",
    "MCQ_FACT_SCHEMA": "analytics",
}


def test_both_give_every_service_the_same_command_and_environment(tmp_path: Path) -> None:
    chosen = {
        **CHOSEN,
        "DB_PROD_URL": "postgresql://mcq_writer@db.example/platform",
        "MCQ_PARTITION_START": "2024-01-01T00:00",
    }
    assert services_of_compose(chosen, tmp_path) == services_of_kubernetes(chosen)


def test_the_code_server_is_the_process_whose_end_restarts_its_container() -> None:
    """`dagster code-server` answers its health check though the server that it keeps has died."""
    chosen = {
        **CHOSEN,
        "DB_PROD_URL": "postgresql://mcq_writer@db.example/platform",
        "MCQ_PARTITION_START": "2024-01-01T00:00",
    }
    assert services_of_kubernetes(chosen)["code"].command[:3] == ["dagster", "api", "grpc"]


@pytest.mark.timeout(600)
def test_all_services_start_by_their_own_commands_and_compute_an_hour(
    own_server: OwnServer, closed: datetime
) -> None:
    administration = own_server.url(own_server.port)
    ports = {"3000": 0, "4000": free_port(), "5432": own_server.port, "7077": free_port()}
    chosen = {
        **CHOSEN,
        "DB_PROD_URL": f"postgresql://mcq_writer@127.0.0.1:{own_server.port}/platform",
        "MCQ_PARTITION_START": (closed - HOUR).strftime("%Y-%m-%dT%H:%M"),
    }
    # Those of Compose are the same.
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
        # The platform's database is not there yet: the code server starts, to tell of it.
        code = services["code"]
        code_is_ready = stack.enter_context(image.started(code))
        stack.enter_context(image.started(services["spark-master"]))(lambda: listens(ports["7077"]))
        worker = stack.enter_context(image.started(services["spark-worker"]))
        log = image.logs / "spark-worker.log"
        worker(lambda: "Successfully registered with master" in log.read_text())
        code_is_ready(lambda: listens(ports["4000"]))
        healthcheck = COMPOSE["services"]["code"]["healthcheck"]["test"][1:]
        code_is_ready(lambda: image.run(code, healthcheck).returncode == 0)
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
        run_id = ui.launch(hour)
        assert ui.wait_for_run(run_id, 300) == "SUCCESS"
        assert wrong_rows(platform) == []
        assert scalar(platform, "SELECT count(*) FROM analytics.question_interaction_fact") == 9
        # Its executors were the worker's.
        assert len(list((image.folder / "work").glob("app-*/*/stderr"))) >= 1


def run_statement(database: Database, statement: str) -> None:
    engine = database.engine().execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(statement.replace("%", "%%"))


@contextmanager
def platform_database(everything: Database, hour: datetime) -> Iterator[Database]:
    """Make the platform's database, its base tables with some rows, and the roles."""
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
