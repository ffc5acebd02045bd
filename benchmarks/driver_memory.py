"""The memory of a run's driver, Python and Java, over a year of hours.

Usage: python benchmarks/driver_memory.py [--students N] [--hours N]

It uses an embedded server of its own and prints a line whenever the run reports progress.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

BEGIN, END = "2024-01-01T00:00", "2025-01-01T00:00"


def resident(pid: int) -> dict[str, int]:
    """Return the resident megabytes of a process and of its Java child."""
    listing = subprocess.run(
        [shutil.which("ps") or "ps", "-A", "-ww", "-o", "pid=,ppid=,rss=,args="],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    found = {}
    for line in listing.splitlines():
        process, parent, kilobytes, *command = line.split(maxsplit=3)
        if int(process) == pid:
            found["Python"] = int(kilobytes) // 1024
        elif int(parent) == pid and "SparkSubmit" in " ".join(command):
            found["Java"] = int(kilobytes) // 1024
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--students", type=int, default=400)
    parser.add_argument("--hours", type=int, default=8784)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["MCQ_HOME"] = home
        os.environ["DAGSTER_HOME"] = str(Path(__file__).parent.parent)
        command = [sys.executable, "-m", "mcq_analytics"]
        subprocess.run([*command, "init-db", "--base-tables"], check=True)
        sample = ["generate", "--students", str(options.students), "--hours", str(options.hours)]
        subprocess.run([*command, *sample], check=True)
        begin = perf_counter()
        with subprocess.Popen(
            [*command, "run", "--start", BEGIN, "--end", END],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as run:
            assert run.stdout is not None
            for line in run.stdout:
                megabytes = ", ".join(
                    f"{name} {size} MB" for name, size in resident(run.pid).items()
                )
                print(
                    f"{perf_counter() - begin:6.1f} s  {line.strip():60}  {megabytes}", flush=True
                )
        sys.exit(run.returncode)


if __name__ == "__main__":
    main()
