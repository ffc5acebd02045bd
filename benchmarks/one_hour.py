"""Where the seconds of one hour are spent, in a database with a given number of answers.

Usage: python benchmarks/one_hour.py [--students N] [--hours N]

It uses an embedded server of its own and prints the seconds of each phase. Times depend on the
machine.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

PHASES = """
import json, os, sys, time
begin = time.perf_counter()
marks = {}
def mark(name):
    global begin
    now = time.perf_counter()
    marks[name] = now - begin
    begin = now
from dagster import DagsterInstance
from mcq_analytics import initialize_spark_session_with_scaling
from mcq_analytics.launching import in_process
from mcq_analytics.settings import load_settings
from mcq_analytics.model.windows import Window, parse_hour, HOUR
mark("imports")
settings = load_settings()
start = parse_hour(sys.argv[1])
initialize_spark_session_with_scaling("local", 0)
mark("JVM")
totals = in_process.run_window(settings, Window(start, start + HOUR))
whole = time.perf_counter() - begin
attempts = sum(total.seconds for total in totals.values())
marks["bookkeeping (Dagster)"] = whole - attempts
for phase in ("wait", "select", "plan", "compute", "write"):
    marks[phase] = sum(total.phases.get(phase, 0.0) for total in totals.values())
marks["rows read"] = sum(total.rows_read for total in totals.values())
print(json.dumps(marks))
"""


def command(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "mcq_analytics", *arguments],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--students", type=int, default=2600)
    parser.add_argument("--hours", type=int, default=1440)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["MCQ_HOME"] = home
        os.environ["DAGSTER_HOME"] = str(Path(__file__).parent.parent)
        command("init-db", "--base-tables")
        begin = perf_counter()
        print(
            command("generate", "--students", str(options.students), "--hours", str(options.hours))
        )
        print(f"generated and copied in {perf_counter() - begin:.1f} s")
        for attempt in ("the first time", "again"):
            begin = perf_counter()
            done = subprocess.run(
                [sys.executable, "-c", PHASES, "2024-02-01T10:00"],
                check=True,
                capture_output=True,
                text=True,
            )
            print(
                f"one hour, {attempt}: {perf_counter() - begin:.1f} s in all; {done.stdout.strip()}"
            )


if __name__ == "__main__":
    main()
