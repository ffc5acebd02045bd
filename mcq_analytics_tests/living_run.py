"""A program of the tests: says of a run that this is its process, and lives until it is killed."""

from __future__ import annotations

import sys
from time import sleep

from dagster import DagsterInstance

from mcq_analytics.definitions.run_state.liveness import Alive, process_tags
from mcq_analytics.settings import load_settings


def main(run_id: str) -> None:
    """Note it on the run, hold its lock, and say so."""
    with DagsterInstance.get() as instance:
        instance.add_run_tags(run_id, process_tags(run_id))
    Alive(run_id, load_settings()).start()
    print("alive", flush=True)
    while True:
        sleep(60)


if __name__ == "__main__":
    main(sys.argv[1])
