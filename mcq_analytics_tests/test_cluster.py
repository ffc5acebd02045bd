"""A standalone cluster: exact facts, executors that follow the load, and what may die.

The driver is in the process of a run, or in a Spark server.
"""

from __future__ import annotations

import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from time import sleep

import pytest
import yaml
from pyspark.sql import SparkSession

from mcq_analytics.postgres.database import Database
from mcq_analytics.spark.environment import package_environment
from mcq_analytics.spark.java import ensure_java
from mcq_analytics.spark.own_session import PYTHON
from mcq_analytics_tests.clusters import (
    EXECUTOR,
    Cluster,
    executors_of,
    python_environment,
    spark_cluster,
)
from mcq_analytics_tests.conftest import MakeDatabase
from mcq_analytics_tests.dagster_dev import dagster_dev
from mcq_analytics_tests.depth import IS_DEEP, deep
from mcq_analytics_tests.facts_of import add_sample, wrong_rows
from mcq_analytics_tests.faults import Hit
from mcq_analytics_tests.manifests import EXECUTORS
from mcq_analytics_tests.reading import WAYS
from mcq_analytics_tests.servers import CHECKOUT, free_port, processes, wait_until
from mcq_analytics_tests.spark_pages import all_pages
from mcq_analytics_tests.spark_servers import COMMAND, SparkServer, spark_server

pytest_plugins = ("mcq_analytics_tests.fault_fixtures",)

RECORDS, MOST = (7_000_000, 4) if IS_DEEP else (3_000_000, 2)
"""Of the largest run, and how many executors belong to so many; at least one always does."""
Settings = dict[str, str]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("cluster")
    with spark_cluster(directory, ensure_java(directory), cores=2) as found:
        yield found


@pytest.fixture
def two_workers(cluster: Cluster) -> Cluster:
    """The cluster as it was before a test removed a worker."""
    while len(cluster.workers) < 2:
        cluster.add_worker(cores=2)
    return cluster


@contextmanager
def run_as_driver(cluster: Cluster, home: Path, page: int, **conf: str) -> Iterator[Settings]:
    """Yield the settings by which the driver is in the process of a run."""
    shown = {"spark.ui.enabled": "true", "spark.ui.port": str(page), **conf}
    yield {"MCQ_HOME": str(home), **cluster.settings("lab", **shown)}


@contextmanager
def server_as_driver(cluster: Cluster, home: Path, page: int, **conf: str) -> Iterator[Settings]:
    """Yield the settings by which runs compute on a Spark server, which computes on the cluster."""
    command = (*COMMAND, "--records", str(RECORDS))
    with (
        run_as_driver(cluster, home, page, **conf) as settings,
        spark_server(home, command, **settings) as served,
    ):
        yield {"MCQ_HOME": str(home), **served.as_cluster("served")}


Driver = Callable[..., AbstractContextManager[Settings]]
DRIVERS: dict[str, Driver] = {"run": run_as_driver, "server": server_as_driver}


@pytest.fixture(params=[pytest.param("run", marks=deep), "server"])
def driver(request: pytest.FixtureRequest) -> Driver:
    return DRIVERS[str(request.param)]


@contextmanager
def program(settings: Settings, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start Python with some arguments; it is killed if it has not ended at the end."""
    with subprocess.Popen(
        [sys.executable, "-m", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), **settings},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def both_days(settings: Settings) -> AbstractContextManager[subprocess.Popen[str]]:
    """Start a run over both days of the sample, whose rows Spark's tasks read."""
    days = ("run", "--start", "2024-01-01", "--end", "2024-01-03")
    return program({**settings, "MCQ_DRIVER_ROWS": "0"}, "mcq_analytics", *days)


def line_of(process: subprocess.Popen[str]) -> str:
    """Return the next line that a program prints; fail with its errors if it ends."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise AssertionError(process.communicate()[1])
    return line.strip()


def with_sample(database: Database, password: str | None = None) -> Settings:
    """Add a sample of two days, and return the setting by which programs find the database."""
    add_sample(database, students=120, seed=5)
    url = database.url if password is None else database.url.set(password=password)
    return {"DB_DEV_URL": url.render_as_string(hide_password=False)}


def examine(settings: Settings) -> None:
    """Let the doctor examine the cluster, which is sound."""
    with program(settings, "mcq_analytics", "doctor") as doctor:
        found, _ = doctor.communicate(timeout=120)
        assert doctor.returncode == 0, found


def test_two_runs_are_exact_and_share_executors_that_follow_the_load(
    two_workers: Cluster, driver: Driver, make_database: MakeDatabase, tmp_path: Path
) -> None:
    one_database, other_database = with_sample(make_database()), with_sample(make_database())
    # In Spark's tasks, where there is no time for more.
    ways = (WAYS[:2], WAYS[2:]) if IS_DEEP else (("slices",), ("ranges",))
    page = free_port()
    seen: set[int] = set()
    enough = threading.Event()

    def look() -> None:
        while not enough.wait(0.1):
            seen.add(executors_of(page) or 0)

    arguments = ("mcq_analytics_tests.cluster_runs", str(RECORDS))
    looking = threading.Thread(target=look)
    with driver(two_workers, tmp_path / "home", page) as settings:
        looking.start()
        try:
            with (
                program({**settings, **one_database}, *arguments, *ways[0]) as one,
                program({**settings, **other_database}, *arguments, *ways[1]) as other,
            ):
                for process, its_ways in zip((one, other), ways, strict=True):
                    assert [line_of(process) for _ in its_ways] == [f"{way} 0" for way in its_ways]
                wait_until(lambda: executors_of(page) == 1, seconds=60)
                if IS_DEEP:
                    examine({**settings, **one_database})
                for process in (one, other):
                    _, errors = process.communicate("\n", timeout=60)
                    assert process.returncode == 0, errors
        finally:
            enough.set()
            looking.join()
    assert 1 < max(seen) <= MOST


@deep
@pytest.mark.usefixtures("instance")
@pytest.mark.parametrize(
    ("kind", "victim"),
    [
        ("run", "executor"),
        ("run", "worker"),
        ("run", "workers change"),
        ("server", "executor"),
        ("server", "worker"),
        ("server", "workers change"),
        ("server", "server"),
    ],
)
def test_no_run_is_lost_when_something_dies(
    two_workers: Cluster,
    kind: str,
    victim: str,
    hit: Hit,
    spark: SparkSession,
    chance: random.Random,
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"
    with (
        DRIVERS[kind](two_workers, home, free_port()) as settings,
        both_days(settings) as process,
    ):
        hit.wait_until_under_way(chance, process)
        if victim == "executor":
            wait_until(lambda: two_workers.executors() != [] or process.poll() is not None)
            for executor in two_workers.executors()[:1]:
                os.kill(executor, signal.SIGKILL)
        elif victim == "worker":
            two_workers.remove_worker(chance.choice(two_workers.workers))
        elif victim == "server":
            os.kill(SparkServer(home).java(), signal.SIGKILL)
        else:
            two_workers.add_worker()
            sleep(chance.uniform(0, 1))
            two_workers.remove_worker(two_workers.workers[0])
        _, errors = process.communicate(timeout=180)
        assert process.returncode == 0, errors
    hit.assert_recovers(spark, failed=None)
    wait_until(lambda: not two_workers.executors())


NOT_THERE = {"spark.executorEnv.PYTHONPATH": ""}


def without_package(directory: Path) -> Settings:
    return {**NOT_THERE, PYTHON: str(python_environment(directory, None))}


def other_version(directory: Path) -> Settings:
    return {**NOT_THERE, PYTHON: str(python_environment(directory, "9.9"))}


def other_python(directory: Path) -> Settings:
    own = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for minor in range(10, 14):
        found = shutil.which(f"python3.{minor}")
        if found is not None and f"python3.{minor}" != own:
            done = subprocess.run([found, "--version"], check=False, capture_output=True)
            if done.returncode == 0:
                return {PYTHON: found}
    pytest.skip("no other Python is installed")


def no_way_to_the_database(_: Path) -> Settings:
    return {"spark.executorEnv.PGHOSTADDR": "127.0.0.9"}


@deep
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("instance")
@pytest.mark.parametrize("kind", DRIVERS)
@pytest.mark.parametrize(
    ("conf_of", "said"),
    [
        (
            without_package,
            (
                r"Spark's executors lack a Python package \(No module named 'mcq_analytics'\): "
                "install mcq_analytics where they run"
            ),
        ),
        (
            other_version,
            (
                r"Spark's executors have another version of mcq_analytics \(9\.9 on \S+, \S+ where "
                r"the run is\): install the same version where they run"
            ),
        ),
        (
            other_python,
            r"Spark's executors have another Python \(.*\): set PYSPARK_PYTHON to a Python there",
        ),
        (
            no_way_to_the_database,
            rf"the server cannot be reached \(from {re.escape(platform.node())}: .*127\.0\.0\.9",
        ),
    ],
)
def test_executors_that_cannot_do_the_work_are_told_in_one_line(
    two_workers: Cluster,
    kind: str,
    conf_of: Callable[[Path], Settings],
    said: str,
    database: Database,
    tmp_path: Path,
) -> None:
    conf = conf_of(tmp_path / "python")
    with DRIVERS[kind](two_workers, tmp_path / "home", free_port(), **conf) as settings:
        own = {**settings, **with_sample(database)}
        with both_days(own) as process:
            _, errors = process.communicate(timeout=400)
        with program(own, "mcq_analytics", "doctor") as doctor:
            found, _ = doctor.communicate(timeout=400)
    assert process.returncode == doctor.returncode == 1
    assert re.match(rf"error: .*{said}", errors.splitlines()[-1]), errors
    assert re.search(rf"\nwrong executors: .*{said}", found), found


IMPATIENT = """
from mcq_analytics.cli.app import main
from mcq_analytics.doctor import cluster

cluster.SECONDS_TO_BEGIN = 15
main(["doctor"])
"""


@deep
def test_a_cluster_without_room_for_an_executor_is_told(
    two_workers: Cluster, database: Database, tmp_path: Path
) -> None:
    conf = {"spark.executor.memory": "50g"}
    with run_as_driver(two_workers, tmp_path / "home", free_port(), **conf) as settings:
        done = subprocess.run(
            [sys.executable, "-c", IMPATIENT],
            env={**os.environ, **settings, **with_sample(database)},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    assert done.returncode == 1
    assert re.search(r"\nwrong executors: no executor has begun after 15 s: check", done.stdout)


@deep
@pytest.mark.usefixtures("instance")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", DRIVERS)
def test_a_backfill_by_the_daemon_is_exact(
    two_workers: Cluster, kind: str, database: Database, tmp_path: Path
) -> None:
    with (
        DRIVERS[kind](two_workers, tmp_path / "home", free_port()) as settings,
        pytest.MonkeyPatch.context() as patch,
    ):
        own = {
            **settings,
            **with_sample(database),
            "MCQ_DRIVER_ROWS": "0",
            "MCQ_PARTITION_START": "2024-01-01",
            "MCQ_AUTOMATION": "false",
        }
        for name, value in own.items():
            patch.setenv(name, value)
        window = ("--start", "2024-01-01", "--end", "2024-01-03", "--chunk", "16")
        with (
            dagster_dev(tmp_path),
            program(own, "mcq_analytics", "backfill", *window) as backfill,
        ):
            _, errors = backfill.communicate(timeout=400)
    assert backfill.returncode == 0, errors
    assert wrong_rows(database) == []


PASSWORD = "s3cretp4ss0fth3database"
"""No encoding changes it. The server of the tests asks for none, so it takes any."""


class Looks:
    """All that others may see of an application: command lines, pages, files."""

    def __init__(self, roots: list[str]) -> None:
        self._roots = roots
        self.seen: dict[str, str] = {}
        self.with_password: set[str] = set()

    def look(self) -> None:
        """Look at the command lines of all processes, and at all pages of all roots."""
        self.take("a command line", "\n".join(line for *_, line in processes()))
        for root in self._roots:
            # Before a driver is up, it has no page.
            with suppress(OSError):
                for address, text in all_pages(root):
                    self.take(address, text)

    def take(self, where: str, text: str) -> None:
        self.seen[where] = text
        if PASSWORD in text:
            self.with_password.add(where)


@contextmanager
def looking(looks: Looks) -> Iterator[None]:
    """Look all the time, and at the end once more."""
    enough = threading.Event()

    def look() -> None:
        while not enough.wait(1):
            looks.look()

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join()
    looks.look()


@deep
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", DRIVERS)
def test_executors_need_nothing_but_the_archive_and_show_no_secret(
    two_workers: Cluster, kind: str, database: Database, tmp_path: Path
) -> None:
    archive = package_environment(tmp_path / "packed.tar.gz").path
    events, page = tmp_path / "events", free_port()
    events.mkdir()
    conf = {
        **NOT_THERE,
        "spark.archives": f"{archive}#environment",
        "spark.executorEnv.PATH": "environment/bin:/usr/local/bin:/usr/bin:/bin",
        "spark.pyspark.python": "python3",
        # A new executor first fetches and unpacks the archive.
        "spark.dynamicAllocation.executorIdleTimeout": "60s",
        "spark.eventLog.enabled": "true",
        "spark.eventLog.compress": "false",
        "spark.eventLog.dir": events.as_uri(),
    }
    looks = Looks([f"http://127.0.0.1:{page}/", *two_workers.pages()])
    ways = ("slices", "ranges")
    arguments = ("mcq_analytics_tests.cluster_runs", str(RECORDS), *ways)
    try:
        with (
            DRIVERS[kind](two_workers, tmp_path / "home", page, **conf) as settings,
            program({**settings, **with_sample(database, PASSWORD)}, *arguments) as process,
        ):
            with looking(looks):
                assert [line_of(process) for _ in ways] == [f"{way} 0" for way in ways]
            _, errors = process.communicate("\n", timeout=60)
            assert process.returncode == 0, errors
        wait_until(lambda: not two_workers.executors())
        applications = list(two_workers.directory.glob("app-*"))
        files = [
            file
            for folder in (events, tmp_path / "home", *applications)
            for file in folder.rglob("*")
            if file.is_file() and not {"environment", "packed.tar.gz"} & set(file.parts)
        ]
        for file in files:
            looks.take(str(file), file.read_text(errors="replace"))
        # Python leaves bytecode where it imports from.
        of_source = "environment/lib/*/site-packages/mcq_analytics/spark/__pycache__/source.*.pyc"
        used = [one for folder in applications for one in folder.rglob(of_source)]
    finally:
        # Every executor has unpacked 300 MB.
        for folder in two_workers.directory.glob("app-*"):
            shutil.rmtree(folder)
    assert looks.with_password == set()
    assert used
    # The right things were looked at.
    names = {file.name for file in files}
    assert {"stdout", "stderr", "spark.log"} <= names
    for part in (EXECUTOR, "mcq_postgres", "SparkListenerTaskEnd", "Spark Master at", "stderr log"):
        assert any(part in text for text in looks.seen.values()), part


DRIVER = """
import sys
from pyspark.sql import SparkSession
spark = SparkSession.builder.getOrCreate()
print(spark.sparkContext.applicationId, flush=True)
print(spark.range(100).rdd.map(lambda row: row.id).sum(), flush=True)
"""


@deep
def test_the_command_of_executor_pods_starts_an_executor(tmp_path: Path) -> None:
    """By the environment that Spark gives to pods; this driver's cluster has no worker."""
    template = yaml.safe_load((EXECUTORS / "executor.yaml").read_text())
    [container] = template["spec"]["containers"]
    java_home = ensure_java(tmp_path)
    cluster = Cluster(tmp_path, java_home)
    port = free_port()
    submitted = (
        *("--master", cluster.master, "--conf", f"spark.driver.port={port}"),
        *("--conf", "spark.driver.host=127.0.0.1", "--conf", "spark.ui.enabled=false"),
    )
    environment = {
        # Without those by which pyspark marks a process whose sessions are on a server.
        **{name: value for name, value in os.environ.items() if not name.startswith("SPARK_")},
        "JAVA_HOME": str(java_home),
        "PATH": f"{java_home}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_SUBMIT_ARGS": " ".join([*submitted, "pyspark-shell"]),
    }
    try:
        with subprocess.Popen(
            [sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, text=True, env=environment
        ) as driver:
            of_pod = {
                "SPARK_APPLICATION_ID": line_of(driver),
                "SPARK_DRIVER_URL": f"spark://CoarseGrainedScheduler@127.0.0.1:{port}",
                "SPARK_EXECUTOR_CORES": "1",
                "SPARK_EXECUTOR_ID": "1",
                "SPARK_EXECUTOR_MEMORY": "512m",
                "SPARK_EXECUTOR_POD_IP": "127.0.0.1",
                "SPARK_EXECUTOR_POD_NAME": "executor-1",
                "SPARK_JAVA_OPT_0": "--add-opens=java.base/java.nio=ALL-UNNAMED",
                "SPARK_JAVA_OPT_1": "-Dof.this.test=two words",
                "SPARK_RESOURCE_PROFILE_ID": "0",
            }
            with subprocess.Popen(
                container["command"], env={**environment, **of_pod}, cwd=tmp_path
            ) as executor:
                try:
                    assert line_of(driver) == "4950"
                    [line] = [line for pid, _, line in processes() if pid == executor.pid]
                    assert "KubernetesExecutorBackend" in line
                finally:
                    executor.kill()
                    driver.kill()
    finally:
        cluster.end()
