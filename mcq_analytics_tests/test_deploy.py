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

from mcq_analytics.settings.spark import cluster_settings
from mcq_analytics.settings.variables import Variables, read_variables
from mcq_analytics_tests.manifests import (
    CHOSEN,
    COMPOSE,
    DEPLOY,
    EXECUTORS,
    KUSTOMIZATION,
    MANIFESTS,
    PROGRAMS,
    RESOURCES,
    SECRETS,
    Service,
    containers,
    labels,
    may_connect,
    mebibytes,
    pods,
    services_of_compose,
    services_of_kubernetes,
)
from mcq_analytics_tests.servers import CHECKOUT

ALL_CHOSEN = {
    **CHOSEN,
    "DB_PROD_URL": "postgresql://mcq_writer@db.example/platform",
    "MCQ_PARTITION_START": "2024-01-01T00:00",
}
with_kubectl = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="kubectl is not installed"
)
CHECK = ["mcq-analytics", "spark-server", "--check"]
# In MiB. Of a Java beside its heap; of the server's Python, a check, and workers that plan reads.
JAVA_BESIDE_HEAP = 1024
PYTHON_OF_SERVER = 512
CODE_SERVER = 350
RUN = 350
RUNS = yaml.safe_load((CHECKOUT / "dagster.yaml").read_text())["concurrency"]["runs"]
ROWS_OF_A_RUN = 512


def built(folder: Path) -> str:
    """Return the manifests that kubectl makes of a kustomization."""
    done = subprocess.run(
        ["kubectl", "kustomize", str(folder)], check=True, capture_output=True, text=True
    )
    return done.stdout


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


def test_all_settings_exist() -> None:
    known = {*Variables.model_fields, "MCQ_CODE_HOST", "SPARK_MASTER_OPTS", "SPARK_WORKER_OPTS"}
    for name, service in services_of_kubernetes(ALL_CHOSEN).items():
        cluster = service.environment.get("MCQ_SPARK_CLUSTER", "local").upper()
        of_cluster = {f"SPARK_{cluster}_{what}" for what in ("MASTER", "CONF", "TOKEN")}
        if name != "dagster-db":
            assert set(service.environment) <= known | of_cluster, name
    assert known >= SECRETS
    assert {"DB_PROD_PASSWORD", "MCQ_DAGSTER_PASSWORD", "MCQ_SPARK_SERVER_TOKEN"} <= SECRETS


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


@with_kubectl
def test_kubectl_builds_the_manifests_that_are_tested_here() -> None:
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
    assert list(yaml.safe_load_all(built(DEPLOY / "kubernetes"))) == expected


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
    for path in [*DEPLOY.glob("*.yaml"), *DEPLOY.glob("kubernetes*/*.yaml")]:
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
    assert services_of_compose(ALL_CHOSEN, tmp_path) == services_of_kubernetes(ALL_CHOSEN)


def test_the_code_server_is_the_main_process_of_its_container() -> None:
    """`dagster code-server` passes its health check even after the server it started has died."""
    assert services_of_kubernetes(ALL_CHOSEN)["code"].command[:3] == ["dagster", "api", "grpc"]


def given(service: Service, option: str) -> str:
    return service.command[service.command.index(option) + 1]


def test_runs_have_the_address_and_the_token_of_the_spark_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    services = services_of_kubernetes(ALL_CHOSEN)
    server, code = services["spark"], services["code"]
    assert server.command[:2] == CHECK[:2]
    assert given(server, "--host") == "0.0.0.0"  # noqa: S104
    for name, value in code.environment.items():
        monkeypatch.setenv(name, value)
    variables = read_variables()
    cluster = cluster_settings(variables.MCQ_SPARK_CLUSTER, variables)
    assert cluster.connect == (server.name, int(given(server, "--port")), False)
    assert cluster.token == server.environment["MCQ_SPARK_SERVER_TOKEN"]
    assert cluster.token == CHOSEN["MCQ_SPARK_SERVER_TOKEN"]
    assert server.name in COMPOSE["services"]
    # No other service computes, nor needs to.
    for name, service in services.items():
        assert ("MCQ_SPARK_CLUSTER" in service.environment) == (name in ("spark", "code"))


def test_the_token_of_the_spark_server_comes_from_the_secret() -> None:
    tokens = {"spark": "MCQ_SPARK_SERVER_TOKEN", "code": "SPARK_CONNECT_TOKEN"}
    for name, variable in tokens.items():
        value = COMPOSE["services"][name]["environment"][variable]
        assert re.fullmatch(r"\$\{MCQ_SPARK_SERVER_TOKEN:\?[^}]*\}", value)
        [container] = pods()[name]["containers"]
        [entry] = [one for one in container["env"] if one["name"] == variable]
        assert "value" not in entry
        assert entry["valueFrom"]["secretKeyRef"] == {
            "name": "mcq-analytics",
            "key": "MCQ_SPARK_SERVER_TOKEN",
        }


def test_the_spark_server_has_no_other_secret_and_no_variables_made_of_its_service() -> None:
    environment = services_of_kubernetes(ALL_CHOSEN)["spark"].environment
    assert set(environment) & SECRETS == {"MCQ_SPARK_SERVER_TOKEN"}
    assert "env_file" not in COMPOSE["services"]["spark"]
    # Such as SPARK_PORT, which Spark or the settings could take for theirs.
    for name, pod in pods().items():
        assert name == "dagster-db" or pod["enableServiceLinks"] is False


def ports_of_driver() -> list[int]:
    conf = services_of_kubernetes(ALL_CHOSEN)["spark"].environment["SPARK_STANDALONE_CONF"]
    return [
        int(re.findall(rf"{name}=(\d+)", conf)[0])
        for name in (r"spark\.driver\.port", r"spark\.driver\.blockManager\.port")
    ]


def test_the_service_of_the_spark_server_has_the_ports_that_it_listens_at() -> None:
    server = services_of_kubernetes(ALL_CHOSEN)["spark"]
    listening = [int(given(server, "--port")), *ports_of_driver()]
    [service] = [
        one["spec"]
        for one in RESOURCES
        if one["kind"] == "Service" and one["metadata"]["name"] == "spark"
    ]
    assert service["selector"].items() <= labels()["spark"].items()
    assert [one["port"] for one in service["ports"]] == listening
    assert all(one.get("targetPort", one["port"]) == one["port"] for one in service["ports"])
    [container] = pods()["spark"]["containers"]
    assert [one["containerPort"] for one in container["ports"]] == listening
    # Executors find the driver by this name, before it is ready.
    assert "spark.driver.host=spark;" in server.environment["SPARK_STANDALONE_CONF"]
    assert service["publishNotReadyAddresses"] is True
    assert service["clusterIP"] == "None"


def test_only_the_pod_of_the_runs_reaches_the_spark_server_and_only_executors_its_driver() -> None:
    connect = int(given(services_of_kubernetes(ALL_CHOSEN)["spark"], "--port"))
    pods_by_name = {**labels(), "unknown": {"app": "unknown"}, "without labels": {}}

    def reaching(port: int) -> set[str]:
        return {
            name
            for name, source in pods_by_name.items()
            if may_connect(source, labels()["spark"], port)
        }

    assert reaching(connect) == {"code"}
    for port in ports_of_driver():
        assert reaching(port) == {"spark-master", "spark-worker"}
    assert reaching(4040) == set()
    # The others are reached by all of the namespace.
    assert may_connect({}, labels()["code"], 4000)
    assert may_connect(labels()["spark"], labels()["spark-master"], 7077)
    for service in ("code", "spark"):
        assert "ports" not in COMPOSE["services"][service]


def test_the_spark_server_is_one_and_is_checked_in_both() -> None:
    healthcheck = COMPOSE["services"]["spark"]["healthcheck"]
    assert healthcheck["test"] == ["CMD", *CHECK]
    assert COMPOSE["services"]["spark"]["restart"] == "unless-stopped"
    [deployment] = [
        one["spec"]
        for one in RESOURCES
        if one["kind"] == "Deployment" and one["metadata"]["name"] == "spark"
    ]
    assert deployment["replicas"] == 1
    assert deployment["strategy"] == {"type": "Recreate"}
    [container] = deployment["template"]["spec"]["containers"]
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = container[kind]
        assert probe["exec"] == {"command": CHECK}
        # A check takes 1.2 s of a core: the default, a second, is never enough.
        assert 10 <= probe["timeoutSeconds"] <= 30
        # All of them together take less than a tenth of a core.
        assert probe["periodSeconds"] >= (10 if kind == "startupProbe" else 30)
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 120
    assert container["livenessProbe"]["failureThreshold"] >= 3


def test_the_spark_server_is_as_restricted_as_the_other_pods() -> None:
    [server] = pods()["spark"]["containers"]
    [code] = pods()["code"]["containers"]
    assert server["securityContext"] == code["securityContext"]
    assert pods()["spark"]["securityContext"] == pods()["code"]["securityContext"]
    assert pods()["spark"]["securityContext"]["runAsNonRoot"] is True
    assert pods()["spark"]["automountServiceAccountToken"] is False


@pytest.mark.parametrize("where", ["Compose", "Kubernetes"])
def test_the_limits_hold_what_the_services_need(where: str) -> None:
    def limit(name: str) -> float:
        if where == "Compose":
            return mebibytes(COMPOSE["services"][name]["mem_limit"])
        [container] = pods()[name]["containers"]
        resources = container["resources"]
        assert mebibytes(resources["requests"]["memory"]) <= mebibytes(
            resources["limits"]["memory"]
        )
        return mebibytes(resources["limits"]["memory"])

    environment = services_of_kubernetes(ALL_CHOSEN)["spark"].environment
    heap = mebibytes(environment["MCQ_SPARK_DRIVER_MEMORY"])
    assert limit("spark") >= heap + JAVA_BESIDE_HEAP + PYTHON_OF_SERVER
    needed = CODE_SERVER + RUNS["max_concurrent_runs"] * RUN + ROWS_OF_A_RUN
    assert needed <= limit("code") <= needed + 512


def test_a_master_that_restarts_finds_the_spark_server_again() -> None:
    """The server is one application for days: a master that forgets it would leave it without."""
    options = services_of_kubernetes(ALL_CHOSEN)["spark-master"].environment["SPARK_MASTER_OPTS"]
    assert "-Dspark.deploy.recoveryMode=FILESYSTEM" in options
    [kept] = re.findall(r"-Dspark\.deploy\.recoveryDirectory=(\S+)", options)
    [container] = pods()["spark-master"]["containers"]
    [mount] = container["volumeMounts"]
    assert kept.startswith(mount["mountPath"] + "/")
    assert pods()["spark-master"]["volumes"] == [
        {"name": mount["name"], "persistentVolumeClaim": {"claimName": "spark-master"}}
    ]
    [volume] = COMPOSE["services"]["spark-master"]["volumes"]
    assert volume == f"spark-master:{mount['mountPath']}"
    assert "spark-master" in COMPOSE["volumes"]


@pytest.mark.parametrize("version", ["1.30", "1.34", "1.37"])
def test_the_manifests_of_executor_pods_are_valid(version: str, tmp_path: Path) -> None:
    own = [EXECUTORS / f"{name}.yaml" for name in ("service-account", "driver-service", "executor")]
    if shutil.which("kubectl") is not None:
        everything = tmp_path / "built.yaml"
        everything.write_text(built(EXECUTORS))
        own.append(everything)
    options = ["--strict", "--kubernetes-version", version]
    subprocess.run([PROGRAMS / "kubernetes-validate", *options, *own], check=True)


@with_kubectl
def test_the_spark_server_finds_executor_pods_and_they_find_its_driver() -> None:
    resources = list(yaml.safe_load_all(built(EXECUTORS)))
    named = {(one["kind"], one["metadata"]["name"]): one for one in resources}
    # Nothing else has changed but that the standalone cluster is gone.
    assert {(one["kind"], one["metadata"]["name"]) for one in RESOURCES} - named.keys() == {
        ("PersistentVolumeClaim", "spark-master"),
        ("Service", "spark-master"),
        ("Deployment", "spark-master"),
        ("Deployment", "spark-worker"),
    }
    pod = named["Deployment", "spark"]["spec"]["template"]["spec"]
    [server] = pod["containers"]
    # A variable can name only those before it.
    assert server["env"][0]["name"] == "POD_NAME"
    environment = {one["name"]: one.get("value") for one in server["env"]}
    assert environment["MCQ_SPARK_CLUSTER"] == "k8s"
    assert environment["SPARK_K8S_MASTER"] == "k8s://https://kubernetes.default.svc"
    assert not any(name.startswith("SPARK_STANDALONE") for name in environment)
    conf = dict(entry.split("=", 1) for entry in str(environment["SPARK_K8S_CONF"]).split(";"))
    service = named["Service", conf["spark.driver.host"]]["spec"]
    assert service["clusterIP"] == "None"
    assert service["publishNotReadyAddresses"] is True
    ports = [int(conf[f"spark.driver.{name}"]) for name in ("port", "blockManager.port")]
    assert [one["port"] for one in service["ports"]] == ports
    assert conf["spark.kubernetes.namespace"] == resources[0]["metadata"]["name"]
    # Executors have the image of all others.
    assert conf["spark.kubernetes.container.image"] == server["image"]

    template = yaml.safe_load(named["ConfigMap", "spark-executor"]["data"]["executor.yaml"])
    [mount] = [one for one in server["volumeMounts"] if one["name"] == "executor"]
    file = f"{mount['mountPath']}/executor.yaml"
    assert conf["spark.kubernetes.executor.podTemplateFile"] == file
    [executor] = template["spec"]["containers"]
    assert conf["spark.kubernetes.executor.podTemplateContainerName"] == executor["name"]
    assert "env" not in executor
    assert "envFrom" not in executor
    assert template["spec"]["automountServiceAccountToken"] is False
    assert executor["securityContext"] == server["securityContext"]
    assert template["spec"]["securityContext"] == pod["securityContext"]
    rules = named["NetworkPolicy", "spark"]["spec"]["ingress"]
    assert [
        [one["port"] for one in rule["ports"]]
        for rule in rules
        if rule["from"] == [{"podSelector": {"matchLabels": template["metadata"]["labels"]}}]
    ] == [ports]


@with_kubectl
def test_the_spark_server_may_create_pods_and_not_read_secrets() -> None:
    named = {
        (one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(built(EXECUTORS))
    }
    pod = named["Deployment", "spark"]["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is True
    [subject] = named["RoleBinding", "spark"]["subjects"]
    assert subject["name"] == pod["serviceAccountName"]
    assert ("ServiceAccount", subject["name"]) in named
    assert named["RoleBinding", "spark"]["roleRef"]["name"] == "spark"
    rules = named["Role", "spark"]["rules"]
    assert {"create", "delete"} <= {
        verb for rule in rules if "pods" in rule["resources"] for verb in rule["verbs"]
    }
    allowed = {name for rule in rules for name in rule["resources"]}
    assert not {"secrets", "*", "pods/exec"} & allowed
