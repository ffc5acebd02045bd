"""What facts with partitions cost and save: loads, an hour, 24 hours, and the care of their tables.

Usage: python -m benchmarks.partitions [--answers N ...] [--partitions N ...]

It prints a line of JSON for each number of answers and of partitions. `docs/scale.md` says from
which size on they pay.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median

from benchmarks.contestants.contestant import Window, working
from benchmarks.contestants.ours import Ours
from benchmarks.datasets import END, HOUR, MANY, MEASURED, START, Dataset, arrive, load
from benchmarks.expected import Expected
from benchmarks.processes import run
from benchmarks.server import DATABASE, Server

FACT = "analytics.question_interaction_fact"
SECONDS = 1_800.0
HOURS_TO_COMPARE = 3
"""Single hours that are computed one after the other; their median counts."""
SESSIONS = 2
"""Of those that care for the tables, as many as there are processors."""

_TABLES = """
    SELECT c.oid::regclass::text FROM pg_class c
    WHERE c.oid = '{0}'::regclass AND c.relkind = 'r'
        OR c.oid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = '{0}'::regclass)
"""
_LARGEST = """
    SELECT max(pg_relation_size(indexrelid)) FROM pg_index
    WHERE indrelid::regclass::text LIKE '{}%'
"""
# One row in twenty, spread over the whole table, as late answers are.
_CHANGE = f"UPDATE {FACT} SET updated_at = now() WHERE hashint8(student_id) % 20 = 0"


class Partitioned(Ours):
    """The project with so many partitions of each fact."""

    def partition(self, number: int) -> None:
        """Give the facts so many partitions."""
        self._do(self._command("init-db", "--fact-partitions", str(number)))


def in_sessions(server: Server, statement: str) -> float:
    """Return the seconds of a statement over all tables of the fact, some at a time."""
    with server.connection() as connection, connection.cursor() as cursor:
        cursor.execute(_TABLES.format(FACT))
        tables = [name for (name,) in cursor.fetchall()]
    server.settle()
    begin = time.perf_counter()
    with ThreadPoolExecutor(SESSIONS) as pool:
        list(pool.map(lambda table: server.run(statement.format(table)), tables))
    return round(time.perf_counter() - begin, 2)


def computed(ours: Ours, window: Window) -> dict[str, float]:
    """Compute a window; return its seconds, those of its write, and those in the database."""
    server = ours.work.server
    server.settle()
    server.reset_counters()
    ran = run(ours.command(window), server.pid, SECONDS)
    assert ran.seconds is not None
    return {
        "seconds": round(ran.seconds, 2),
        "write": ours.phases()["write"],
        "database": round(server.counters().active_ms / 1000, 2),
    }


def measure(
    ours: Partitioned, dataset: Dataset, number: int, expected: Expected
) -> dict[str, object]:
    """Return the figures of a number of partitions."""
    server = ours.work.server
    expected.prepare(dataset, END)
    server.create(DATABASE, dataset.name)
    ours.partition(number)
    ours.prepare_empty(Window(START, MEASURED))
    first = computed(ours, Window(START, MEASURED))
    arrive(server, END)
    server.run("VACUUM ANALYZE")
    hours = [
        computed(ours, Window(begin, begin + HOUR))
        for begin in (MEASURED + index * HOUR for index in range(HOURS_TO_COMPARE))
    ]
    rest = computed(ours, Window(MEASURED + HOURS_TO_COMPARE * HOUR, END))
    found: dict[str, object] = {
        "answers": dataset.answers,
        "partitions": number,
        "into empty": first,
        "hour": {name: round(median(one[name] for one in hours), 3) for name in hours[0]},
        f"{24 - HOURS_TO_COMPARE} hours": rest,
        "wrong rows": expected.wrong_rows(dataset, END, ours.facts()),
        "largest index MB": round(int(server.scalar(_LARGEST.format(FACT))) / 1e6),
    }
    server.run(_CHANGE)
    found["vacuum"] = in_sessions(server, "VACUUM (INDEX_CLEANUP ON, PARALLEL 0) {}")
    found["reindex"] = in_sessions(server, "REINDEX TABLE {}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.partitions", description=__doc__)
    parser.add_argument("--answers", nargs="+", type=int, default=[1_000_000, 3_000_000])
    parser.add_argument("--partitions", nargs="+", type=int, default=[1, 8, 32])
    options = parser.parse_args()
    with working("partitions") as work:
        ours = Partitioned(work)
        ours.install()
        ours.make_empty()
        expected = Expected(work.server, work.folder / "expected")
        for answers in options.answers:
            dataset = Dataset(MANY, answers)
            load(work.server, dataset)
            for number in options.partitions:
                print(json.dumps(measure(ours, dataset, number, expected)), flush=True)
            work.server.drop(dataset.name)


if __name__ == "__main__":
    main()
