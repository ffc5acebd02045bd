"""What 720 hours cost on a standalone cluster: executors, rows a second and core, bytes, WAL.

Usage: python -m benchmarks.cluster [--answers N ...] [--cores N] [--server] [--kept FOLDER]

It starts a master, two workers of a core each, and PostgreSQL, all on this machine, and prints a
line of JSON for each number of answers. `docs/scale.md` derives the cost model from it. Spark's
event logs are kept in a folder, if one is given, for its history server.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from benchmarks.contestants.contestant import Window, Work, working
from benchmarks.contestants.ours import Ours
from benchmarks.datasets import END, MANY, START, Dataset, arrive, load
from benchmarks.expected import Expected
from benchmarks.processes import Command, FailedError, run, start, stop_tree
from benchmarks.server import DATABASE, Server
from mcq_analytics.spark.endpoints import local_endpoint
from mcq_analytics.spark.java import ensure_java
from mcq_analytics_tests.clusters import Cluster, conf_of_cluster, spark_cluster

WHOLE = Window(START, END)
_SIZE_OF_FACTS = (
    "SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c "
    "WHERE relnamespace = 'analytics'::regnamespace AND relkind = 'r'"
)
SECONDS = 1_800.0
SECONDS_TO_START = 120.0
SECONDS_TO_FALL_IDLE = 90.0


@dataclass
class Stages:
    """What the tasks of some stages did: tasks, core seconds, records and bytes."""

    tasks: int = 0
    seconds: float = 0.0
    records: int = 0
    megabytes: float = 0.0

    def figures(self) -> dict[str, float]:
        """Return them, and the records a second and core."""
        return {**asdict(self), "rate": round(self.records / max(self.seconds, 1e-9))}


@dataclass
class Application:
    """What an event log says of an application."""

    reading: Stages = field(default_factory=Stages)
    writing: Stages = field(default_factory=Stages)
    executors: list[tuple[float, int]] = field(default_factory=list)
    """How many executors there were from a second on."""


class OnCluster(Ours):
    """The project with its driver in the process of the run, and executors on a cluster."""

    def up(self, answers: int) -> AbstractContextManager[None]:
        """Keep up what the runs need: nothing."""
        return nullcontext()

    def __init__(self, work: Work, cluster: Cluster, events: Path) -> None:
        super().__init__(work)
        self._conf = conf_of_cluster(
            **{
                "spark.executor.cores": "1",
                "spark.executor.memory": "800m",
                "spark.eventLog.enabled": "true",
                "spark.eventLog.compress": "false",
                "spark.eventLog.rolling.enabled": "false",
                "spark.eventLog.dir": events.as_uri(),
                "spark.dynamicAllocation.executorIdleTimeout": "10s",
            }
        )
        self._master = cluster.master

    def _command_of(self, arguments: tuple[str, ...]) -> Command:
        command = super()._command_of(arguments)
        of_cluster = {
            "MCQ_SPARK_CLUSTER": "lab",
            "SPARK_LAB_MASTER": self._master,
            "SPARK_LAB_CONF": self._conf,
            "MCQ_SPARK_EXECUTOR_CORES": "1",
        }
        return replace(command, environment={**command.environment, **of_cluster})


class OnServer(OnCluster):
    """The same with its driver in a Spark server, which stays until its executors are idle."""

    @contextmanager
    def up(self, answers: int) -> Iterator[None]:
        """Keep the server up, and after the block until executors without work have gone."""
        command = self._command("spark-server", "--records", str(answers))
        with (self._home / "spark-server.out").open("w") as output:
            process = start(command, output)
        try:
            give_up = time.monotonic() + SECONDS_TO_START
            while local_endpoint(self._home) is None:
                if process.poll() is not None or time.monotonic() > give_up:
                    raise FailedError("the Spark server does not start")
                time.sleep(0.1)
            yield
            time.sleep(SECONDS_TO_FALL_IDLE)
        finally:
            stop_tree(process)

    def command(self, window: Window, *, into_empty: bool = False) -> Command:
        """Return the command that computes a window on the server."""
        command = super().command(window)
        endpoint = local_endpoint(self._home)
        assert endpoint is not None
        assert endpoint.token is not None
        of_server = {
            "MCQ_SPARK_CLUSTER": "served",
            "SPARK_SERVED_MASTER": str(endpoint),
            "SPARK_SERVED_TOKEN": endpoint.token,
        }
        return replace(command, environment={**command.environment, **of_server})


def read_events(log: Path) -> Application:
    """Return what an application did, by its event log."""
    found = Application()
    start, executors = 0.0, 0
    for line in log.read_text().splitlines():
        event = json.loads(line)
        kind = event["Event"]
        if kind == "SparkListenerApplicationStart":
            start = event["Timestamp"] / 1000
        elif kind in ("SparkListenerExecutorAdded", "SparkListenerExecutorRemoved"):
            executors += 1 if kind.endswith("Added") else -1
            found.executors.append((round(event["Timestamp"] / 1000 - start, 1), executors))
        elif kind == "SparkListenerTaskEnd" and event.get("Task Metrics"):
            _add(found, event["Task Metrics"])
    return found


def _add(found: Application, metrics: Mapping[str, object]) -> None:
    read, written = metrics["Shuffle Read Metrics"], metrics["Shuffle Write Metrics"]
    assert isinstance(read, dict)
    assert isinstance(written, dict)
    into = found.writing if read["Total Records Read"] else found.reading
    into.tasks += 1
    into.seconds += float(str(metrics["Executor Run Time"])) / 1000
    if into is found.reading:
        into.records += written["Shuffle Records Written"]
        into.megabytes += written["Shuffle Bytes Written"] / 1e6
    else:
        into.records += read["Total Records Read"]
        into.megabytes += (read["Remote Bytes Read"] + read["Local Bytes Read"]) / 1e6


@contextmanager
def connections_of(server: Server) -> Iterator[list[int]]:
    """Yield the most connections to the database, in a list, while the block is open."""
    most = [0]
    enough = threading.Event()

    def look() -> None:
        while not enough.wait(0.05):
            count = server.scalar(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = %s",
                DATABASE,
                database="postgres",
            )
            most[0] = max(most[0], int(count))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield most
    finally:
        enough.set()
        looking.join()


def measure(ours: OnCluster, answers: int, events: Path, expected: Expected) -> dict[str, object]:
    """Return the figures of 720 hours with so many answers into empty facts."""
    server = ours.work.server
    dataset = Dataset(MANY, answers)
    load(server, dataset)
    expected.prepare(dataset, END)
    server.create(DATABASE, dataset.name)
    arrive(server, END)
    ours.prepare_empty(WHOLE)
    server.settle()
    before = server.scalar("SELECT pg_current_wal_lsn()")
    known = set(events.iterdir())
    with ours.up(answers), connections_of(server) as most:
        ran = run(ours.command(WHOLE), server.pid, SECONDS)
    wal = server.scalar("SELECT pg_current_wal_lsn() - %s::pg_lsn", before)
    [log] = set(events.iterdir()) - known
    application = read_events(log)
    found = {
        "answers": server.scalar("SELECT count(*) FROM answers"),
        "submissions": server.scalar("SELECT count(*) FROM submissions"),
        "seconds": ran.seconds,
        "wrong rows": expected.wrong_rows(dataset, END, ours.facts()),
        "phases": ours.phases(),
        "reading": application.reading.figures(),
        "writing": application.writing.figures(),
        "executors": application.executors,
        "connections": most[0],
        "WAL MB": round(int(wal) / 1e6),
        "facts MB": round(int(server.scalar(_SIZE_OF_FACTS)) / 1e6),
    }
    server.drop(dataset.name)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=__doc__)
    parser.add_argument("--answers", nargs="+", type=int, default=[1_000_000, 3_000_000])
    parser.add_argument(
        "--cores", type=int, default=1, help="of each worker; more than there are share them"
    )
    parser.add_argument("--server", action="store_true", help="the driver is in a Spark server")
    parser.add_argument("--kept", type=Path, default=None, help="folder for Spark's event logs")
    options = parser.parse_args()
    with working("cluster") as work:
        events = options.kept or work.folder / "events"
        events.mkdir(parents=True, exist_ok=True)
        java = ensure_java(work.folder)
        with spark_cluster(work.folder / "cluster", java, options.cores) as cluster:
            kind = OnServer if options.server else OnCluster
            ours = kind(work, cluster, events.absolute())
            ours.install()
            ours.make_empty()
            expected = Expected(work.server, work.folder / "expected")
            for answers in options.answers:
                found = measure(ours, answers, events, expected)
                print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
