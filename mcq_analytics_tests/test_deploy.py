"""The manifests under `deploy/`: valid, and the same for Compose and for Kubernetes."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from mcq_analytics_tests.conftest import CHECKOUT
from mcq_analytics_tests.manifests import (
    CHOSEN,
    COMPOSE,
    DEPLOY,
    KUSTOMIZATION,
    MANIFESTS,
    PROGRAMS,
    RESOURCES,
    SECRETS,
    containers,
    pods,
    services_of_compose,
    services_of_kubernetes,
)


def test_the_compose_file_is_valid() -> None:
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
def test_the_kubernetes_manifests_are_valid(version: str) -> None:
    options = ["--strict", "--kubernetes-version", version]
    subprocess.run([PROGRAMS / "kubernetes-validate", *options, *MANIFESTS], check=True)


def test_compose_and_kubernetes_have_the_same_services() -> None:
    deployed = {resource["metadata"]["name"] for resource in RESOURCES if "spec" in resource}
    assert set(COMPOSE["services"]) - {"init-db"} <= deployed
    assert any(one["name"] == "init-db" for one in containers())


def test_all_settings_are_in_the_example() -> None:
    known = set(re.findall(r"^(?:# )?([A-Z_]+)=", (CHECKOUT / ".env.example").read_text(), re.M))
    known |= {"MCQ_CODE_HOST", "SPARK_STANDALONE_MASTER", "SPARK_STANDALONE_CONF"}
    [settings] = [one["data"] for one in RESOURCES if one["kind"] == "ConfigMap"]
    assert set(settings) <= known
    assert set(COMPOSE["x-service"]["environment"]) <= known
    assert known >= SECRETS
    assert {"DB_PROD_PASSWORD", "MCQ_DAGSTER_PASSWORD"} <= SECRETS


def test_only_the_master_of_spark_has_a_fixed_host_name() -> None:
    assert not any("hostname" in service for service in COMPOSE["services"].values())
    # It listens at the name by which workers and drivers call it.
    named = {name: pod["hostname"] for name, pod in pods().items() if "hostname" in pod}
    assert named == {"spark-master": "spark-master"}


def test_nothing_waits_for_the_fact_schema_so_that_alerts_can_report_it_missing() -> None:
    for service in COMPOSE["services"].values():
        assert "init-db" not in service.get("depends_on", {})
    assert COMPOSE["services"]["init-db"]["restart"] == "on-failure"
    assert not any("initContainers" in pod for pod in pods().values())
    assert pods()["init-db"]["restartPolicy"] == "OnFailure"


def test_the_kustomization_lists_every_manifest_and_creates_the_namespace_first() -> None:
    others = {path.name for path in (DEPLOY / "kubernetes").iterdir()} - {"kustomization.yaml"}
    assert sorted(KUSTOMIZATION["resources"]) == sorted(others)
    kinds = [resource["kind"] for resource in RESOURCES]
    assert kinds[0] == "Namespace"
    assert kinds.count("Namespace") == 1
    assert KUSTOMIZATION["sortOptions"] == {"order": "fifo"}
    # Settings and network policies come before the pods.
    for resource in RESOURCES[1:]:
        assert resource["metadata"]["namespace"] == RESOURCES[0]["metadata"]["name"]
    first_pod = next(at for at, one in enumerate(RESOURCES) if "template" in one.get("spec", {}))
    assert max(kinds.index("ConfigMap"), kinds.index("NetworkPolicy")) < first_pod


def test_the_image_has_its_name_and_version_in_one_place() -> None:
    [image] = KUSTOMIZATION["images"]
    assert {one["image"] for one in containers()} == {image["name"], "postgres:18"}
    named = f"{image['newName']}:{image['newTag']}"
    assert image["newTag"] == importlib.metadata.version("mcq_analytics")
    assert (DEPLOY / "compose.yaml").read_text().count(f"image: {named}") == 1
    assert {service["image"] for service in COMPOSE["services"].values()} == {named, "postgres:18"}


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kubectl_builds_the_manifests_that_are_tested_here() -> None:
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


def test_no_claim_needs_storage_that_several_machines_can_write_to() -> None:
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
        # Two pods with one claim, on two machines, would wait for each other.
        assert user["spec"]["replicas"] == 1
        assert user["spec"]["strategy"] == {"type": "Recreate"}


def test_ports_are_published_on_loopback_only_and_no_secret_is_in_a_manifest() -> None:
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


def test_commands_exist_and_are_the_same_in_both() -> None:
    given = {one["name"]: one.get("command", []) for one in containers()}
    for name, service in COMPOSE["services"].items():
        if "command" not in service:
            continue
        assert service["command"] == given[name]
        assert (PROGRAMS / service["command"][0]).exists()


def test_all_files_that_the_image_copies_exist() -> None:
    copied = re.findall(r"^COPY (.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.M)
    for name in " ".join(copied).split():
        assert (CHECKOUT / name).exists()


def test_every_service_has_the_same_command_and_environment_in_both(tmp_path: Path) -> None:
    chosen = {
        **CHOSEN,
        "DB_PROD_URL": "postgresql://mcq_writer@db.example/platform",
        "MCQ_PARTITION_START": "2024-01-01T00:00",
    }
    assert services_of_compose(chosen, tmp_path) == services_of_kubernetes(chosen)


def test_the_code_server_is_the_main_process_of_its_container() -> None:
    """`dagster code-server` passes its health check even after the server it started has died."""
    chosen = {
        **CHOSEN,
        "DB_PROD_URL": "postgresql://mcq_writer@db.example/platform",
        "MCQ_PARTITION_START": "2024-01-01T00:00",
    }
    assert services_of_kubernetes(chosen)["code"].command[:3] == ["dagster", "api", "grpc"]
