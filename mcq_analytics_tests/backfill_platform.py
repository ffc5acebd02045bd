"""A platform with a daemon and a UI, for tests of backfills."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

from dagster import DagsterInstance, DagsterRunStatus, RunsFilter

from mcq_analytics.definitions.run_state.liveness import process_of
from mcq_analytics.model.windows import Window, format_hour
from mcq_analytics.postgres.database import Database
from mcq_analytics_tests.dagster_dev import Ui
from mcq_analytics_tests.servers import wait_until


@dataclass
class Platform:
    """A running platform over a database with some hours of activity."""

    database: Database
    instance: DagsterInstance
    ui: Ui
    window: Window
    environment: dict[str, str]

    @property
    def bounds(self) -> list[str]:
        return ["--start", format_hour(self.window.start), "--end", format_hour(self.window.end)]

    def backfill(self, *options: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "mcq_analytics", "backfill", *self.bounds, *options],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for_backfill(self, backfill_id: str) -> None:
        def has_ended() -> bool:
            backfill = self.instance.get_backfill(backfill_id)
            return backfill is not None and backfill.status.value.startswith("COMPLETED")

        wait_until(has_ended, seconds=300)

    def status_of(self, page: str) -> str:
        backfill = self.instance.get_backfill(page.rsplit("/", 1)[1])
        assert backfill is not None
        return str(backfill.status.value)

    def wait_for_status(self, page: str, status: str) -> None:
        wait_until(lambda: self.status_of(page) == status, seconds=300)

    def runs_of(self, backfill_id: str) -> list[DagsterRunStatus]:
        filters = RunsFilter(tags={"dagster/backfill": backfill_id})
        return [run.status for run in self.instance.get_runs(filters)]

    def processes_of(self, backfill_id: str) -> list[int]:
        """Return the processes of a backfill's runs, as recorded on the runs."""
        filters = RunsFilter(tags={"dagster/backfill": backfill_id})
        recorded = [process_of(run) for run in self.instance.get_runs(filters)]
        return [process for process in recorded if process is not None]
