"""Reads the manifests under `deploy/`: the services, with their commands and environments."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from dotenv import dotenv_values

from mcq_analytics_tests.servers import CHECKOUT

DEPLOY = CHECKOUT / "deploy"
KUSTOMIZATION: dict[str, Any] = yaml.safe_load(
    (DEPLOY / "kubernetes" / "kustomization.yaml").read_text()
)
MANIFESTS = [DEPLOY / "kubernetes" / name for name in KUSTOMIZATION["resources"]]
EXECUTORS = DEPLOY / "kubernetes-executors"
"""The same services, with executor pods in place of a standalone cluster."""
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


def pods() -> dict[str, dict[str, Any]]:
    return {
        resource["metadata"]["name"]: resource["spec"]["template"]["spec"]
        for resource in RESOURCES
        if "template" in resource.get("spec", {})
    }


def labels() -> dict[str, dict[str, str]]:
    return {
        resource["metadata"]["name"]: resource["spec"]["template"]["metadata"]["labels"]
        for resource in RESOURCES
        if "template" in resource.get("spec", {})
    }


def selects(selector: dict[str, Any], pod: dict[str, str]) -> bool:
    """Return whether a selector of Kubernetes selects a pod with some labels."""
    known = {"matchLabels", "matchExpressions"}
    assert set(selector) <= known, selector
    for rule in selector.get("matchExpressions", []):
        assert rule["operator"] in ("In", "NotIn")
        if (pod.get(rule["key"]) in rule["values"]) != (rule["operator"] == "In"):
            return False
    wanted: dict[str, str] = selector.get("matchLabels", {})
    return wanted.items() <= pod.items()


def may_connect(source: dict[str, str], target: dict[str, str], port: int) -> bool:
    """Return whether the network policies let a pod of the namespace connect to a port of another.

    Policies add up; a pod that none selects can be reached by all.
    """
    policies = [one["spec"] for one in RESOURCES if one["kind"] == "NetworkPolicy"]
    chosen = [policy for policy in policies if selects(policy["podSelector"], target)]
    rules = [rule for policy in chosen for rule in policy["ingress"]]
    assert all(set(peer) == {"podSelector"} for rule in rules for peer in rule.get("from", []))
    return not chosen or any(
        ("from" not in rule or any(selects(peer["podSelector"], source) for peer in rule["from"]))
        and ("ports" not in rule or port in [one["port"] for one in rule["ports"]])
        for rule in rules
    )


def mebibytes(size: str) -> float:
    """Return a size of memory in MiB, as Java, Compose or Kubernetes write it."""
    number, unit = re.fullmatch(r"(\d+)(m|g|Mi|Gi)", size).groups()  # type: ignore[union-attr]
    return int(number) * {"m": 1, "g": 1024}[unit[0].lower()]


@dataclass(frozen=True)
class Service:
    """A service of Compose or Kubernetes."""

    name: str
    command: list[str]
    environment: dict[str, str]


def services_of_compose(chosen: dict[str, str], directory: Path) -> dict[str, Service]:
    """Return Compose's services, with `chosen` in `.env`."""
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
    """Return Kubernetes' services, with `chosen` as the secret and for settings without a value."""
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


ODD_PASSWORD = "p@ss%2F:w/?#&"
ODD_TOKEN = "t0ken;=%/+:of-the-server"
CHOSEN = {
    "DB_PROD_PASSWORD": ODD_PASSWORD,
    "MCQ_DAGSTER_PASSWORD": ODD_PASSWORD,
    "MCQ_SPARK_SERVER_TOKEN": ODD_TOKEN,
    "MCQ_DAGSTER_WEBSERVER_URL": "https://dagster.example.org",
    "ALERT_METHOD": "slack",
    "SLACK_WEBHOOK_URL": "http://127.0.0.1:1/never",
    "MCQ_SOURCE_SCHEMA": "public",
    "MCQ_FACT_SCHEMA": "analytics",
}
