"""The steps of a generated sequence, carried out on a real platform, and noted in the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from dagster import DagsterEvent, DagsterEventType, DagsterRunStatus, JobDefinition
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL

from mcq_analytics.alerting.state import CHECK, LIVE
from mcq_analytics.api import get_last_successful_runs
from mcq_analytics.compute.lock import lock_key
from mcq_analytics.definitions.build import FACTS_JOB
from mcq_analytics.definitions.partitions import (
    range_tags,
)
from mcq_analytics.definitions.run_state import settled_events
from mcq_analytics.model.facts import FACTS
from mcq_analytics.model.windows import HOUR, Window, last_closed_hour_end
from mcq_analytics.postgres.database import Database
from mcq_analytics_tests.agreement_looks import covered, expanded
from mcq_analytics_tests.agreement_model import (
    ALL,
    FUNNEL,
    HOURS,
    NAMES,
    SUCCESS,
    Model,
    Run,
    Step,
)
from mcq_analytics_tests.agreement_processes import DIED, NOT_IN_DAGSTER, InProcesses
from mcq_analytics_tests.conftest import opened_instance
from mcq_analytics_tests.facts_of import execute, scalar, wrong_rows

BROKEN, GONE, WAITED = "broken", "gone", "waited"
WORDS = (BROKEN, DIED, GONE, NOT_IN_DAGSTER, WAITED)
"""Words in the errors of `etl_metadata`; a run that gives up waiting leaves no error there."""
BREAK = (
    "CREATE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'broken'; END $$"
)
IN_ONE_FACT = (
    "CREATE TRIGGER broken BEFORE INSERT ON analytics.etl_metadata FOR EACH ROW WHEN "
    "(NEW.pipeline_name = '{}' AND NEW.status = 'success') EXECUTE FUNCTION broken()"
)
TAMPER = (
    "CREATE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {}; RETURN NEW; END $$"
)
IN_A_FACT = (
    "CREATE TRIGGER broken BEFORE INSERT OR UPDATE ON analytics.{} FOR EACH ROW "
    "EXECUTE FUNCTION broken()"
)
MEND = "DROP FUNCTION broken CASCADE"
COLUMNS = {
    **dict.fromkeys(NAMES, ("time_spent",)),
    FUNNEL: ("total_submissions", "incomplete_submissions"),
}
"""Columns that can be made wrong together without breaking a constraint of their fact."""


class Platform(InProcesses):
    """The first twelve hours of a platform, which have just closed, and the model of them."""

    def __init__(
        self, database: Database, directory: Path, patch: pytest.MonkeyPatch, records: URL
    ):
        self.database, self.patch = database, patch
        self.first = last_closed_hour_end() - HOURS * HOUR
        self.model = Model(self.first)
        patch.setenv("MCQ_PARTITION_START", f"{self.first:%Y-%m-%dT%H:%M}")
        tables = (
            "SELECT format('TRUNCATE %s', string_agg(format('%I.%I', schemaname, tablename), ', '))"
            " FROM pg_tables WHERE schemaname IN ('public', 'analytics') "
            "AND tablename <> 'alembic_version'"
        )
        execute(
            database,
            str(scalar(database, tables)),
            # A test per hour: the recompute check can judge a test once all its hours are computed.
            "INSERT INTO answers SELECT n, n % 3, n, n / 2, 1, 'A', "
            f"timestamptz '{self.first}' + n * interval '30 min' FROM generate_series(0, 23) n",
            "INSERT INTO submissions SELECT n, n, "
            f"timestamptz '{self.first}' + n * interval '1 h', 'completed' "
            "FROM generate_series(0, 11) n",
        )
        # Dagster's events are taken for settled at once, so that looks read only the latest ones.
        patch.setattr(settled_events, "SETTLING_SECONDS", 1)
        patch.setattr(settled_events, "STEP", 1)
        self.late_answers = 0
        self.words: set[str] = set()
        self.cursors: dict[str, str | None] = {}
        directory.mkdir()
        self.held = ExitStack()
        url = records.render_as_string(hide_password=False)
        self.records = create_engine(records, isolation_level="AUTOCOMMIT")
        self.held.callback(self.records.dispose)
        self.instance = self.held.enter_context(opened_instance(url, directory, patch))

    @property
    def job(self) -> JobDefinition:
        return self.definitions.resolve_job_def(FACTS_JOB)

    def execute(self, window: Window) -> None:
        """Run the facts over a window in this process, without retries."""
        self.job.execute_in_process(
            instance=self.instance,
            tags={**range_tags(window), "dagster/max_retries": "0"},
            raise_on_error=False,
        )

    def passes(self, step: Step) -> None:
        self.execute(self.window(step))
        self.model.passes(self.model.begin(self.window(step)))

    @contextmanager
    def broken(self, *statements: str) -> Iterator[None]:
        execute(self.database, *statements)
        yield
        execute(self.database, MEND)

    def fails(self, step: Step) -> None:
        """Let a run fail as it records the success of one fact: none of them is stored."""
        with self.broken(BREAK, IN_ONE_FACT.format(step.fact)):
            self.execute(self.window(step))
        self.failed(self.model.begin(self.window(step)), BROKEN)

    def is_found_wrong(self, step: Step) -> None:
        window = self.window(step)
        # A row that is right is not written again, so it is made wrong first. The test of an hour
        # has the number of the hour.
        change = (
            f"UPDATE analytics.{step.fact} SET "
            + ", ".join(f"{column} = {column} + 1" for column in COLUMNS[step.fact])
            + f" WHERE test_id >= {step.first} AND test_id < {step.first + window.hours}"
        )
        tamper = "; ".join(f"NEW.{one} := NEW.{one} + 7" for one in COLUMNS[step.fact])
        with self.broken(change, TAMPER.format(tamper), IN_A_FACT.format(step.fact)):
            self.execute(window)
        self.model.passes(self.model.begin(window), step.fact)

    def loses_the_database(self, step: Step) -> None:
        with self.patch.context() as away:
            gone = self.database.url.set(database="gone").render_as_string(hide_password=False)
            away.setenv("DB_DEV_URL", gone)
            self.execute(self.window(step))
            self.failed(self.model.begin(self.window(step)), GONE)
            self.look_without_database()

    def gives_up_waiting(self, step: Step) -> None:
        key = {"key": lock_key("analytics")}
        with self.patch.context() as hasty, self.database.engine().connect() as holder:
            hasty.setenv("MCQ_LOCK_TIMEOUT", "0")
            holder.execute(text("SELECT pg_advisory_lock(:key)"), key)
            self.execute(self.window(step))
        self.model.begin(self.window(step)).state = "cancelled"

    def waits_in_the_queue(self, step: Step) -> None:
        run = self.model.begin(self.window(step))
        run.run_id = self.instance.create_run_for_job(
            self.job,
            tags={**range_tags(run.window), "dagster/max_retries": "0"},
            status=DagsterRunStatus.QUEUED,
            remote_job_origin=RemoteJobOrigin(
                RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("here"), "repository"),
                FACTS_JOB,
            ),
        ).run_id

    def queued(self, step: Step) -> Run:
        """Return the run that has waited longest; if none waits, let one begin to."""
        if not self.model.in_progress():
            self.waits_in_the_queue(step)
        return self.model.in_progress()[0]

    def is_cancelled_in_the_queue(self, step: Step) -> None:
        run = self.queued(step)
        found = self.instance.get_run_by_id(run.run_id)
        assert found is not None
        self.instance.report_run_canceled(found)
        self.model.is_cancelled(run)

    def leaves_the_queue(self, run: Run) -> None:
        starting = DagsterEvent(DagsterEventType.RUN_STARTING.value, FACTS_JOB)
        self.instance.report_dagster_event(starting, run_id=run.run_id)
        found = self.instance.get_run_by_id(run.run_id)
        assert found is not None
        execute_run(InMemoryJob(self.job), found, self.instance)

    def leaves_the_queue_and_passes(self, step: Step) -> None:
        run = self.queued(step)
        self.leaves_the_queue(run)
        self.model.passes(run)

    def leaves_the_queue_and_fails(self, step: Step) -> None:
        run = self.queued(step)
        with self.broken(BREAK, IN_ONE_FACT.format(step.fact)):
            self.leaves_the_queue(run)
        self.failed(run, BROKEN)

    def gets_late_rows(self, step: Step) -> None:
        """Add a late row: its hour runs again if it is done, and nothing else."""
        start = self.window(step).start
        self.late_answers += 1
        execute(
            self.database,
            f"INSERT INTO answers VALUES ({1000 + self.late_answers}, {self.late_answers % 3}, "
            f"{100 + self.late_answers}, {step.first}, 1, 'B', "
            f"timestamptz '{start}' + interval '7 min')",
        )
        self.model.hours[start].changed = True
        asked = self.tick("late_data_sensor")
        changed = self.model.which(
            lambda hour: hour.changed and hour.status == SUCCESS and not hour.is_cancelled
        )
        self.agree("late data", expanded(asked), changed - self.model.busy())
        for window in map(covered, asked):
            self.execute(window)
            self.model.passes(self.model.begin(window))

    def end(self) -> None:
        """After a run over everything, all hours are good and no incident is open."""
        while self.model.in_progress():
            self.is_cancelled_in_the_queue(Step("", 0, 1))
        self.passes(Step("", 0, HOURS))
        for fact in FACTS:
            [latest] = get_last_successful_runs(self.database.engine(), fact.name, limit=1)
            assert latest.window == Window(self.first, self.first + HOURS * HOUR)
        self.look("alerts")
        errors = str(
            scalar(self.database, "SELECT string_agg(error, ' ') FROM analytics.etl_metadata")
        )
        assert {word for word in WORDS if word in errors} == self.words
        assert self.model.incidents == {
            LIVE: {ALL: set()},
            CHECK: {name: set() for name in NAMES},
        }
        assert wrong_rows(self.database) == []
