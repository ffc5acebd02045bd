"""The manifests under `deploy/`: what their schemas and the settings say, and that they start."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster import DagsterInstance

from mcq_analytics.storage.database import Database
from mcq_analytics_tests.conftest import CHECKOUT
from mcq_analytics_tests.dagster_dev import Ui
from mcq_analytics_tests.servers import free_port, wait_until

DEPLOY = CHECKOUT / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
RESOURCES: list[dict[str, Any]] = [
    resource for path in MANIFESTS for resource in yaml.safe_load_all(path.read_text())
]
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
    text = (DEPLOY / "kubernetes" / "settings.yaml").read_text()
    assert set(re.findall(r"--from-literal=(\w+)=", text)) - {"POSTGRES_PASSWORD"} <= known


def test_the_host_of_runs_keeps_its_name_so_that_dead_ones_are_known() -> None:
    assert COMPOSE["services"]["code"]["hostname"] == "code"
    pods = [
        resource["spec"]["template"]["spec"]
        for resource in RESOURCES
        if "template" in resource.get("spec", {})
    ]
    assert [pod["containers"][0]["name"] for pod in pods if "hostname" in pod] == ["code"]


def test_nothing_is_published_but_on_loopback_and_no_secret_is_written_down() -> None:
    for service in COMPOSE["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    for resource in RESOURCES:
        assert resource["kind"] not in ("Secret", "Ingress")
        if resource["kind"] == "Service":
            assert resource["spec"].get("type", "ClusterIP") == "ClusterIP"
    for path in [*MANIFESTS, DEPLOY / "compose.yaml"]:
        for line in path.read_text().splitlines():
            if re.search(r"(PASSWORD|TOKEN|WEBHOOK_URL|DAGSTER_URL)\w*: ", line):
                assert "${" in line, line


def test_the_commands_are_the_same_in_both_and_there() -> None:
    given = {one["name"]: one.get("command", []) for one in containers()}
    for name, service in COMPOSE["services"].items():
        if "command" not in service:
            continue
        words = [re.sub("--host=.*", "--host", str(word)) for word in service["command"]]
        other = [re.sub("--host=.*", "--host", str(word)) for word in given[name]]
        assert " ".join(words).replace("workspace ", "workspace=") == " ".join(other)
        assert (PROGRAMS / words[0]).exists()


def test_the_image_has_all_files_that_it_copies() -> None:
    copied = re.findall(r"^COPY (.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.M)
    for name in " ".join(copied).split():
        assert (CHECKOUT / name).exists()


@contextmanager
def started(service: str, port: int, directory: Path) -> Iterator[None]:
    """Start a service of the composition with its own command, on a port of loopback."""
    words = [
        re.sub("--host=.*", "--host=127.0.0.1", re.sub("--port=.*", f"--port={port}", word))
        for word in COMPOSE["services"][service]["command"]
    ]
    with (directory / f"{service}.log").open("w") as log:
        process = subprocess.Popen(
            [PROGRAMS / words[0], *words[1:]],
            cwd=directory,
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT), "MCQ_CODE_HOST": "127.0.0.1"},
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


def test_the_webservers_show_the_code_server_and_the_one_for_readers_starts_nothing(
    database: Database, instance: DagsterInstance, tmp_path: Path
) -> None:
    code = free_port()
    workspace = (DEPLOY / "workspace.yaml").read_text()
    (tmp_path / "workspace.yaml").write_text(workspace.replace("4000", str(code)))
    with ExitStack() as stack:
        stack.enter_context(started("code", code, tmp_path))
        _, *words = COMPOSE["services"]["code"]["healthcheck"]["test"]
        healthy = [PROGRAMS / words[0], *words[1:-1], str(code)]
        wait_until(
            lambda: subprocess.run(healthy, check=False, capture_output=True).returncode == 0
        )
        webservers = {}
        for name in ("webserver", "webserver-read-only"):
            port = free_port()
            stack.enter_context(started(name, port, tmp_path))
            webservers[name] = Ui(port, tmp_path / f"{name}.log")
        for ui in webservers.values():
            wait_until(ui.is_ready)
        tags = {"dagster/partition": "2024-01-01-09:00"}
        refused = webservers["webserver-read-only"].launch_answer(tags)
        assert refused["__typename"] == "UnauthorizedError"
        assert instance.get_runs() == []
        assert webservers["webserver"].launch_answer(tags)["__typename"] == "LaunchRunSuccess"
        info = f"http://127.0.0.1:{webservers['webserver'].port}/server_info"
        with urllib.request.urlopen(info, timeout=30) as answer:
            assert "dagster_version" in json.load(answer)
