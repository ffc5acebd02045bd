"""The Spark server of `mcq-analytics spark-server`: who may use it, and what happens if it dies."""

from __future__ import annotations

import json
import os
import random
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from time import sleep

import psutil
import pytest
from dagster import AssetKey, DagsterInstance
from pyspark.sql import SparkSession

from mcq_analytics.model.facts import FACTS
from mcq_analytics.postgres.database import Database
from mcq_analytics.settings.spark import SparkSettings
from mcq_analytics.spark import warm_up
from mcq_analytics.spark.endpoints import FILE, local_endpoint
from mcq_analytics_tests.commands import call, fails
from mcq_analytics_tests.depth import IS_DEEP, deep
from mcq_analytics_tests.facts_of import add_sample, scalar, wrong_rows
from mcq_analytics_tests.faults import Hit
from mcq_analytics_tests.servers import CHECKOUT, free_port, is_running, processes, wait_until
from mcq_analytics_tests.spark_servers import SparkServer, spark_server

pytest_plugins = ("mcq_analytics_tests.fault_fixtures",)

RESTARTED = "the Spark server's Java has ended, or Spark in it: it is started again"
MEGABYTE = 2**20


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkServer]:
    """A server that tests may kill."""
    with spark_server(tmp_path_factory.mktemp("served") / "home") as found:
        yield found


@pytest.fixture
def mortal(served: SparkServer, tmp_path: Path) -> Iterator[SparkServer]:
    """A server whose Java a test kills: it gives up if that happens thrice within a minute."""
    if not IS_DEEP:
        yield served
    else:
        with spark_server(tmp_path / "mortal") as found:
            yield found


def command(*arguments: str, **settings: str) -> subprocess.Popen[str]:
    """Start `mcq-analytics` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "mcq_analytics", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), **settings},
    )


def run_both_days(served: SparkServer, **settings: str) -> subprocess.Popen[str]:
    """Start a run over both days of the sample, in the folder of a server."""
    days = ("run", "--start", "2024-01-01", "--end", "2024-01-03")
    return command(*days, MCQ_HOME=str(served.home), **settings)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a command; return its exit code and what it printed."""
    out, err = process.communicate(timeout=120)
    return process.returncode, out + err


def test_a_server_for_others_needs_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = call("spark-server", "--host", "0.0.0.0")  # noqa: S104
    fails(refused, 2, "runs code as its user", "set MCQ_SPARK_SERVER_TOKEN to listen on 0.0.0.0")
    monkeypatch.setenv("MCQ_SPARK_CLUSTER", "room")
    monkeypatch.setenv("SPARK_ROOM_MASTER", "sc://localhost:15002")
    fails(call("run"), 1, "SPARK_ROOM_TOKEN is not set", "MCQ_SPARK_SERVER_TOKEN")
    monkeypatch.setenv("SPARK_ROOM_TOKEN", "t0ken-of-the-room")
    fails(call("spark-server"), 2, "'room' is a Spark server already", "MCQ_SPARK_CLUSTER")


@pytest.mark.parametrize("master", ["sc://", "sc://host", "sc://host:x", "sc://host:1/;token=a"])
def test_a_malformed_address_is_refused(monkeypatch: pytest.MonkeyPatch, master: str) -> None:
    monkeypatch.setenv("MCQ_SPARK_CLUSTER", "room")
    monkeypatch.setenv("SPARK_ROOM_MASTER", master)
    monkeypatch.setenv("SPARK_ROOM_TOKEN", "t0ken-of-the-room")
    fails(call("run"), 1, "SPARK_ROOM_MASTER is not of the form sc://host:port")


def test_a_second_server_and_a_taken_port_are_refused(
    served: SparkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MCQ_HOME", str(served.home))
    fails(call("spark-server"), 1, f"a Spark server for {served.home} is already running")
    monkeypatch.setenv("MCQ_HOME", str(tmp_path / "other"))
    port = str(served.endpoint.port)
    fails(call("spark-server", "--port", port), 1, f"cannot listen on 127.0.0.1:{port}", "--port")


def test_the_health_check_tells_whether_a_server_answers(
    served: SparkServer, tmp_path: Path
) -> None:
    code, printed = ended(command("spark-server", "--check", MCQ_HOME=str(served.home)))
    assert (code, "answers (Spark " in printed) == (0, True), printed
    none = tmp_path / "none"
    code, printed = ended(command("spark-server", "--check", MCQ_HOME=str(none)))
    assert (code, printed) == (1, f"error: no Spark server runs for {none}\n")
    nowhere = {**served.as_cluster("room"), "SPARK_ROOM_MASTER": f"sc://127.0.0.1:{free_port()}"}
    code, printed = ended(command("spark-server", "--check", **nowhere))
    assert code == 1
    [line] = printed.splitlines()
    assert "cannot be reached (Connection refused): start it (mcq-analytics spark-server)" in line


def test_the_token_is_for_its_user_only_and_on_no_command_line_or_log(served: SparkServer) -> None:
    token = served.endpoint.token
    assert token is not None
    assert stat.S_IMODE((served.home / FILE).stat().st_mode) == 0o600
    assert all(token not in line for _, _, line in processes())
    logs = [served.printed, (served.home / "spark.log").read_text()]
    assert all(token not in text for text in logs)


def test_a_wrong_token_is_refused_in_one_line(served: SparkServer, database: Database) -> None:
    add_sample(database, students=5, seed=1)
    wrong = {**served.as_cluster("room"), "SPARK_ROOM_TOKEN": "wr0ng-t0ken"}
    code, printed = ended(command("spark-server", "--check", **wrong))
    assert code == 1
    [line] = printed.splitlines()
    assert "refuses the token: give the one that MCQ_SPARK_SERVER_TOKEN holds" in line
    assert "wr0ng" not in printed


@pytest.mark.parametrize("rows", ["200000", "0"], ids=["driver", "slices"])
def test_a_run_on_a_server_is_exact_and_small_and_starts_no_java(
    served: SparkServer, instance: DagsterInstance, database: Database, rows: str
) -> None:
    add_sample(database, students=30, seed=3)
    other = {"MCQ_DRIVER_ROWS": rows, **served.as_cluster("room")}
    with command("run", "--start", "2024-01-01", "--end", "2024-01-03", **other) as process:
        java_started, peak = False, 0
        while process.poll() is None:
            with suppress(psutil.NoSuchProcess):
                peak = max(peak, psutil.Process(process.pid).memory_info().rss)
            mine = [line for _, parent, line in processes() if parent == process.pid]
            java_started = java_started or any("java" in line for line in mine)
            sleep(0.1)
        code, printed = ended(process)
    assert code == 0, printed
    assert not java_started
    assert wrong_rows(database) == []
    assert 100 * MEGABYTE < peak < 350 * MEGABYTE
    event = instance.get_latest_materialization_event(AssetKey(FACTS[0].name))
    assert event is not None
    assert event.asset_materialization is not None
    assert event.asset_materialization.metadata["spark"].value == str(served.endpoint)


ENDS = """
import signal
from pathlib import Path
from mcq_analytics.settings.spark import SparkSettings
from pyspark import SparkContext
from mcq_analytics.spark import java_process
from mcq_analytics.spark.java_process import end_session
from mcq_analytics.spark.own_session import start_session
from mcq_analytics.spark.scaling import session_config
from mcq_analytics.spark.server_java import is_up

def start():
    start_session(SparkSettings(), Path("home").absolute(), session_config(SparkSettings(), 0))
    return SparkContext._active_spark_context, SparkContext._gateway

print(is_up())
context, gateway = start()
print(is_up())
context._jsc.sc().stop()  # as when its cluster gives the application up
print(is_up())
end_session()
context, gateway = start()
print(is_up())
gateway.proc.kill()
gateway.proc.wait()
print(is_up())
end_session()
context, gateway = start()
print(is_up())
java_process.SECONDS_TO_END = 1
gateway.proc.send_signal(signal.SIGSTOP)
end_session()
print(gateway.proc.poll() == -signal.SIGKILL)
"""


def test_a_server_is_up_while_spark_runs_in_its_java_and_starts_again_afterwards(
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDS],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "True", "False", "True", "False", "True", "True"]


@pytest.mark.usefixtures("instance")
def test_runs_survive_a_server_whose_java_is_killed(
    mortal: SparkServer, hit: Hit, spark: SparkSession, chance: random.Random
) -> None:
    served, java = mortal, mortal.java()
    with run_both_days(served) as process:
        hit.wait_until_under_way(chance, process)
        os.kill(java, signal.SIGKILL)
        code, printed = ended(process)
    assert code == 0, printed
    hit.assert_recovers(spark, failed=None)
    wait_until(lambda: served.printed.count(RESTARTED) >= 1)
    wait_until(lambda: served.java() != java)
    # The next run uses the new one.
    with run_both_days(served) as process:
        code, printed = ended(process)
    assert code == 0, printed


@pytest.mark.usefixtures("instance")
def test_what_a_killed_run_left_on_a_server_is_cleaned_up_by_the_next(
    served: SparkServer, hit: Hit, spark: SparkSession, chance: random.Random
) -> None:
    with run_both_days(served, MCQ_DRIVER_ROWS="0") as process:
        hit.wait_until_under_way(chance, process)
        process.kill()
        process.communicate()
    hit.assert_recovers(spark, failed=None)


@pytest.mark.usefixtures("instance")
def test_a_cancelled_run_leaves_no_task_on_a_server(
    served: SparkServer, hit: Hit, spark: SparkSession, chance: random.Random
) -> None:
    with run_both_days(served, MCQ_DRIVER_ROWS="0") as process:
        hit.wait_until_under_way(chance, process)
        process.send_signal(signal.SIGINT)
        code, printed = ended(process)
    # On a fast machine it may have committed.
    assert code in (0, 1, 130), printed
    tasks = "pg_stat_activity WHERE application_name LIKE '% task'"
    wait_until(lambda: hit.count(tasks) == 0, seconds=10)
    hit.assert_recovers(spark, failed=None)


def test_a_run_without_the_server_of_its_folder_computes_in_its_own_process(
    served: SparkServer, database: Database, tmp_path: Path, instance: DagsterInstance
) -> None:
    add_sample(database, students=10, seed=4)
    home = tmp_path / "left"
    home.mkdir()
    left = json.loads((served.home / FILE).read_text())
    # What a killed server leaves; if no other process has its id, nobody looks further.
    (home / FILE).write_text(json.dumps({**left, "port": free_port(), "process": 2**22 + 1}))
    assert local_endpoint(home) is None
    (home / FILE).write_text(json.dumps({**left, "port": free_port(), "process": os.getpid()}))
    run = command("run", "--start", "2024-01-01", "--end", "2024-01-03", MCQ_HOME=str(home))
    code, printed = ended(run)
    assert code == 0, printed
    assert "cannot be reached" in printed
    assert "Spark runs in this process" in printed
    assert wrong_rows(database) == []
    assert scalar(database, "SELECT count(*) FROM analytics.etl_metadata WHERE error > ''") == 0


OPENS = """
import sys
from pathlib import Path
from mcq_analytics.spark.connect import ServerUnreachableError, connect
from mcq_analytics.spark.endpoints import local_endpoint

session = None
while session is None:
    try:
        session = connect(local_endpoint(Path(sys.argv[1])), {})
    except ServerUnreachableError:
        pass  # it is just being started again
print("open", flush=True)
input()
"""


OPENS_WHILE_JAVA_STARTS_AGAIN = """
import os, signal, socket, sys
from pathlib import Path
from mcq_analytics.spark.connect import connect
from mcq_analytics_tests.servers import wait_until
from mcq_analytics_tests.spark_servers import SparkServer

class Settings(dict):
    def items(self):
        yield "spark.sql.shuffle.partitions", "1"
        java = server.java()
        os.kill(java, signal.SIGKILL)
        wait_until(lambda: server.java() != java)
        wait_until(is_reached)
        yield "spark.sql.shuffle.partitions", "2"

def is_reached():
    with socket.socket() as probe:
        return probe.connect_ex((server.endpoint.host, server.endpoint.port)) == 0

server = SparkServer(Path(sys.argv[1]))
connect(server.endpoint, Settings())
"""


DEAF = """
import sys
from mcq_analytics.cli.app import main
from mcq_analytics.spark import server

def deafly(call):
    def called(*arguments):
        try:
            return call(*arguments)
        except KeyboardInterrupt:
            return True  # as Python does if it comes in a finalizer

    return called

for name in ("start_session", "is_up", "is_outgrown", "sleep"):
    setattr(server, name, deafly(getattr(server, name)))
{limits}
sys.argv[1:1] = ["spark-server"]
main()
"""


@deep
def test_a_server_that_has_outgrown_its_heap_starts_again_between_two_sessions(
    tmp_path: Path,
) -> None:
    limits = (
        "server.HEAP_SHARE, server.SECONDS_BETWEEN_HEAP_LOOKS, server.SHORT_LIVES = 0.01, 1, 99"
    )
    with spark_server(tmp_path / "served", ("-c", DEAF.format(limits=limits))) as served:
        with subprocess.Popen(
            [sys.executable, "-c", OPENS, str(served.home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as client:
            assert client.stdout is not None
            assert client.stdout.readline() == "open\n"
            java = served.java()
            before = served.printed
            sleep(3)
            assert (served.java(), served.printed) == (java, before)
            client.communicate("\n")
        wait_until(lambda: not is_running(java))
        wait_until(lambda: "holds more than 1% of its heap without a session" in served.printed)
        wait_until(lambda: served.java() != java)
        refused = subprocess.run(
            [sys.executable, "-c", OPENS_WHILE_JAVA_STARTS_AGAIN, str(served.home)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert "ServerUnreachableError" in refused.stderr
        # What it has opened on the new Java does not keep that from being started again.
        times = served.printed.count("of its heap")
        wait_until(lambda: served.printed.count("of its heap") > times, seconds=60)


def test_a_new_server_is_warmed(tmp_path: Path) -> None:
    with spark_server(tmp_path / "served", MCQ_SPARK_WARM_UP="true") as server:

        def warming() -> list[int]:
            parent = server.process()
            return [pid for pid, of, line in processes() if of == parent and "warm_up" in line]

        wait_until(lambda: warming() != [])
        first = warming()
        if IS_DEEP:
            os.kill(server.java(), signal.SIGKILL)
            wait_until(lambda: warming() not in ([], first))
            assert RESTARTED in server.printed
            wait_until(lambda: warming() == [])
        assert "warmed" not in server.printed, server.printed
    wait_until(lambda: not any(map(is_running, first)))
    alone = [sys.executable, "-m", "mcq_analytics.spark.warm_up"]
    home = {"MCQ_HOME": str(tmp_path / "none")}
    refused = subprocess.run(
        alone, env={**os.environ, **home}, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 1
    assert refused.stderr.startswith("the Spark server was not warmed: no Spark server runs for")


def test_what_warms_a_server_computes_on_it(
    resized: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"SMALL_RUNS": 1, "LARGE_RUNS": 1, "LARGE_ANSWERS": 2_000}.items():
        monkeypatch.setattr(warm_up, name, value)
    warm_up.warm_up(resized, SparkSettings())
