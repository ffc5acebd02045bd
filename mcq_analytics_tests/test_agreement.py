"""Generated sequences of runs: whoever tells of hours tells the same after every step.

A model that knows what each step means, and none of our code, says what is to be told: by SQL over
`etl_metadata`, by `status`, by Dagster's partitions, by schedule and recovery sensor, by the open
incidents. Two things Dagster cannot tell, and the model knows them:

- Of an hour that failed and over which a later run was cancelled it may keep no failure.
- It counts runs in the order in which they were asked for, not in that in which they end.

`SEQUENCES` sets how many are tried, each of up to `SEQUENCE_STEPS` steps; `make test-deep` sets it
high. A failure prints the shortest sequence that fails: put it under `@example`.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from time import sleep

import pytest
from dagster import AssetKey, DagsterEvent, DagsterEventType, DagsterRunStatus, RunRequest
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from pyspark.sql import SparkSession
from sqlalchemy import text
from sqlalchemy.engine import URL

from mcq_analytics.alerting.state import CHECK, LIVE, State
from mcq_analytics.api import get_last_successful_runs, get_time_range
from mcq_analytics.compute.lock import lock_key
from mcq_analytics.definitions.build import FACTS_JOB, build_definitions
from mcq_analytics.definitions.partitions import (
    RANGE_END_TAG,
    RANGE_START_TAG,
    hour_of,
    hourly_partitions,
    partition_key,
    range_tags,
)
from mcq_analytics.definitions.sensors import alerts
from mcq_analytics.definitions.sensors.kept_cursors import KeptCursor
from mcq_analytics.model.facts import FACTS, FACTS_BY_NAME
from mcq_analytics.model.windows import HOUR, Window, format_hour, last_closed_hour_end, parse_time
from mcq_analytics.postgres.database import Database
from mcq_analytics.settings import load_settings
from mcq_analytics_tests.commands import call
from mcq_analytics_tests.conftest import CHECKOUT, create_database, drop_database, opened_instance
from mcq_analytics_tests.facts_of import execute, scalar, wrong_rows
from mcq_analytics_tests.servers import wait_until
from mcq_analytics_tests.tally import TALLY
from mcq_analytics_tests.ticks import schedule_tick, sensor_tick

SEQUENCES = int(os.environ.get("SEQUENCES", "1"))
SEQUENCE_STEPS = int(os.environ.get("SEQUENCE_STEPS", "4"))
HOURS = 12
NAMES = tuple(fact.name for fact in FACTS)
FUNNEL = "test_funnel_fact"
SUCCESS, FAILED = "success", "failed"
BROKEN, DIED, GONE, WAITED = "broken", "the process", "gone", "waited"
WORDS = (BROKEN, DIED, GONE, WAITED)
"""Of errors in `etl_metadata`; who waited in vain leaves none there."""
ALL_FAIL = 3
"""So many windows of a fact that failed in a row are not halved."""

Told = dict[str, set[datetime]]

BREAK = (
    "CREATE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'broken'; END $$"
)
IN_ONE_FACT = (
    "CREATE TRIGGER broken BEFORE INSERT ON analytics.etl_metadata FOR EACH ROW WHEN "
    "(NEW.pipeline_name = '{}' AND NEW.status = 'success') EXECUTE FUNCTION broken()"
)
TAMPER = (
    "CREATE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
    "NEW.total_submissions := NEW.total_submissions + 7; RETURN NEW; END $$"
)
IN_THE_FUNNEL = (
    f"CREATE TRIGGER broken BEFORE INSERT OR UPDATE ON analytics.{FUNNEL} FOR EACH ROW "
    "EXECUTE FUNCTION broken()"
)
A_LOOK = timedelta(seconds=30)
MEND = "DROP FUNCTION broken CASCADE"

BY_SQL = """
    WITH hours AS (
        SELECT pipeline_name AS fact, hour, status, id FROM analytics.etl_metadata,
        LATERAL generate_series(window_start, window_end - interval '1 h', interval '1 h') AS hour
    )
    SELECT DISTINCT ON (fact, hour) fact, hour, status = 'cancelled' AS is_cancelled, (
        SELECT status FROM hours AS other WHERE other.fact = hours.fact AND other.hour = hours.hour
        AND status <> 'cancelled' ORDER BY id DESC LIMIT 1
    ) AS status
    FROM hours ORDER BY fact, hour, id DESC
"""


@dataclass(frozen=True)
class Step:
    """What becomes of a run over some of twelve hours. `fact` fails, or waits, where just one does.

    `first_look` is who looks at it first.
    """

    kind: str
    first: int
    hours: int
    facts: tuple[str, ...] = NAMES
    fact: str = NAMES[0]
    first_look: str = "status"


@dataclass(eq=False)
class Run:
    """A run as Dagster knows it: in progress, passed, failed or cancelled."""

    window: Window
    facts: tuple[str, ...]
    run_id: str = ""
    state: str = "in progress"


@dataclass
class Hour:
    """What is so of an hour of a fact. `latest` is the run that Dagster tells of it, if any."""

    status: str | None = None
    is_cancelled: bool = False
    is_wrong: bool = False
    failed_in: Window | None = None
    latest: Run | None = None
    materialized: bool = False
    changed: bool = False

    @property
    def is_wanted(self) -> bool:
        return not self.is_cancelled and (self.status != SUCCESS or self.is_wrong)

    @property
    def has_failed_before_it_was_cancelled(self) -> bool:
        """Whether Dagster has kept the failure only if its pages were looked at in between."""
        is_left_alone = self.latest is not None and self.latest.state == "cancelled"
        return self.status == FAILED and is_left_alone

    @property
    def by_dagster(self) -> str | None:
        if self.latest is not None and self.latest.state in ("in progress", FAILED):
            return "IN_PROGRESS" if self.latest.state == "in progress" else "FAILED"
        return "MATERIALIZED" if self.materialized else None


@dataclass
class Model:
    """What is so, by the meaning of the steps."""

    first: datetime
    hours: dict[str, dict[datetime, Hour]] = field(default_factory=dict)
    in_a_row: dict[str, set[Window]] = field(
        default_factory=lambda: {name: set() for name in NAMES}
    )
    runs: list[Run] = field(default_factory=list)
    incidents: dict[str, Told] = field(default_factory=dict)
    bad: dict[str, Told] = field(default_factory=dict)
    was_away: bool = False

    def __post_init__(self) -> None:
        self.hours = {name: {self.first + n * HOUR: Hour() for n in range(HOURS)} for name in NAMES}

    def cover(self, closed: datetime) -> None:
        """Know the hours that have passed meanwhile, too."""
        for hours in self.hours.values():
            while max(hours) + HOUR < closed:
                hours[max(hours) + HOUR] = Hour()

    def which(self, tells: Callable[[Hour], bool]) -> Told:
        return {
            name: {start for start, hour in hours.items() if tells(hour)}
            for name, hours in self.hours.items()
        }

    def in_progress(self) -> list[Run]:
        return [run for run in self.runs if run.state == "in progress"]

    def busy(self) -> Told:
        busy: Told = {name: set() for name in NAMES}
        for run in self.in_progress():
            for name in run.facts:
                busy[name].update(run.window.starts())
        return busy

    def begin(self, window: Window, facts: Sequence[str]) -> Run:
        """Note that a run is asked for."""
        run = Run(window, tuple(facts))
        self.runs.append(run)
        for name in facts:
            for start in window.starts():
                self.hours[name][start].latest = run
        return run

    def over(self, run: Run, name: str) -> Iterator[Hour]:
        for start in run.window.starts():
            yield self.hours[name][start]

    def passes(self, run: Run, name: str, *, wrong: bool = False) -> None:
        self.in_a_row[name].clear()
        for hour in self.over(run, name):
            hour.status, hour.is_cancelled, hour.is_wrong = SUCCESS, False, wrong
            hour.materialized, hour.latest, hour.changed = True, None, False

    def fails(self, run: Run, name: str) -> None:
        self.in_a_row[name].add(run.window)
        for hour in self.over(run, name):
            hour.status, hour.is_cancelled, hour.failed_in = FAILED, False, run.window

    def is_cancelled(self, run: Run) -> None:
        """Note that somebody has stopped a run: its hours are what they were."""
        run.state = "cancelled"
        for name in run.facts:
            for hour in self.over(run, name):
                if hour.latest is run:
                    hour.is_cancelled = True

    def wanted(self) -> Told:
        busy = self.busy()
        return {
            name: hours - busy[name]
            for name, hours in self.which(lambda hour: hour.is_wanted).items()
        }

    def failed_beside_others(self) -> Told:
        return {
            name: {
                start
                for start in hours
                if len(self.in_a_row[name]) < ALL_FAIL
                and self.hours[name][start].status == FAILED
                and (self.hours[name][start].failed_in or Window(start, start + HOUR)).hours > 1
            }
            for name, hours in self.wanted().items()
        }

    def open_incidents(self) -> dict[str, Told]:
        """Return the hours of the open incidents, after another look at them."""
        failed = {
            LIVE: self.which(lambda hour: hour.by_dagster == "FAILED"),
            CHECK: self.which(lambda hour: hour.is_wrong),
        }
        good = self.which(lambda hour: hour.latest is None and not hour.is_wrong)
        for kind, needed in ((LIVE, 2), (CHECK, 1)):
            known = self.incidents.setdefault(kind, {name: set() for name in NAMES})
            bad = self.bad.setdefault(kind, {name: set() for name in NAMES})
            for name in NAMES:
                bad[name] = (bad[name] - good[name]) | (
                    known[name] & (failed[LIVE][name] | failed[CHECK][name])
                )
            if not any(bad.values()):
                known.update((name, set()) for name in NAMES)
            for name in NAMES:
                new = in_rows_of(needed, failed[kind][name])
                known[name] |= new
                bad[name] |= new
        return self.incidents


def in_rows_of(needed: int, hours: set[datetime]) -> set[datetime]:
    """Return the hours that have a neighbour among them, where one alone is not enough."""
    return {hour for hour in hours if needed == 1 or {hour - HOUR, hour + HOUR} & hours}


class Platform:
    """Twelve hours of activity that have just closed, the first that there are, and the model."""

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
            "INSERT INTO answers SELECT n, n % 3, n, 5, 1, 'A', "
            f"timestamptz '{self.first}' + n * interval '30 min' FROM generate_series(0, 23) n",
            "INSERT INTO submissions SELECT n, 5, "
            f"timestamptz '{self.first}' + n * interval '1 h', 'completed' "
            "FROM generate_series(0, 11) n",
        )
        self.late_answers = 0
        self.words: set[str] = set()
        self.cursors: dict[str, str | None] = {}
        directory.mkdir()
        self.held = ExitStack()
        url = records.render_as_string(hide_password=False)
        self.instance = self.held.enter_context(opened_instance(url, directory, patch))
        self.definitions = build_definitions(load_settings())
        self.job = self.definitions.resolve_job_def(FACTS_JOB)

    # --- what may become of a run

    def window(self, step: Step) -> Window:
        start = self.first + step.first * HOUR
        return Window(start, min(start + step.hours * HOUR, self.first + HOURS * HOUR))

    def execute(self, window: Window, facts: Iterable[str]) -> None:
        """Run facts over a window in this process, without retries."""
        self.job.execute_in_process(
            instance=self.instance,
            tags={**range_tags(window), "dagster/max_retries": "0"},
            asset_selection=[AssetKey(name) for name in facts],
            raise_on_error=False,
        )

    def ended(self, run: Run, bad: str | None = None, *, wrong: bool = False) -> None:
        """Note that all facts of a run have passed but one, which failed or is wrong."""
        for name in run.facts:
            if name == bad and not wrong:
                self.model.fails(run, name)
                self.words.add(BROKEN)
            else:
                self.model.passes(run, name, wrong=name == bad)
        run.state = SUCCESS if bad not in run.facts else FAILED

    def passes(self, step: Step) -> None:
        self.execute(self.window(step), step.facts)
        self.ended(self.model.begin(self.window(step), step.facts))

    @contextmanager
    def broken(self, *statements: str) -> Iterator[None]:
        execute(self.database, *statements)
        yield
        execute(self.database, MEND)

    def fails(self, step: Step) -> None:
        with self.broken(BREAK, IN_ONE_FACT.format(step.fact)):
            self.execute(self.window(step), step.facts)
        self.ended(self.model.begin(self.window(step), step.facts), step.fact)

    def is_found_wrong(self, step: Step) -> None:
        facts = sorted({*step.facts, FUNNEL})
        # What is right already is not written: it is made wrong before.
        change = f"UPDATE analytics.{FUNNEL} SET total_submissions = total_submissions + 1"
        with self.broken(change, TAMPER, IN_THE_FUNNEL):
            self.execute(self.window(step), facts)
        self.ended(self.model.begin(self.window(step), facts), FUNNEL, wrong=True)

    def loses_the_database(self, step: Step) -> None:
        with self.patch.context() as away:
            gone = self.database.url.set(database="gone").render_as_string(hide_password=False)
            away.setenv("DB_DEV_URL", gone)
            self.execute(self.window(step), step.facts)
            run = self.model.begin(self.window(step), step.facts)
            for name in run.facts:
                self.model.fails(run, name)
            run.state = FAILED
            self.words.add(GONE)
            self.look_while_away()

    def waits_in_vain(self, step: Step) -> None:
        key = {"key": lock_key("analytics", FACTS_BY_NAME[step.fact])}
        with self.patch.context() as hasty, self.database.engine().connect() as holder:
            hasty.setenv("MCQ_LOCK_TIMEOUT", "0")
            holder.execute(text("SELECT pg_advisory_lock(:key)"), key)
            self.execute(self.window(step), step.facts)
        run = self.model.begin(self.window(step), step.facts)
        for name in set(run.facts) - {step.fact}:
            self.model.passes(run, name)
        run.state = SUCCESS if step.fact not in run.facts else "cancelled"

    def in_a_process(self, step: Step, by: signal.Signals) -> Run:
        """Run a window in a process of its own, and end that before its first fact is stored."""
        window = self.window(step)
        bounds = ["--start", format_hour(window.start), "--end", format_hour(window.end)]
        with self.database.engine().connect() as holder:
            for name in NAMES:
                holder.execute(text(f"LOCK TABLE analytics.{name} IN SHARE MODE"))
            before = self.under_way()
            process = subprocess.Popen(
                [sys.executable, "-m", "mcq_analytics", "run", *bounds],
                env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
                stderr=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
            try:
                wait_until(lambda: self.under_way() - before != set())
                run = self.model.begin(window, NAMES)
                [run.run_id] = self.under_way() - before
                self.look(step.first_look)
                process.send_signal(by)
                if by is signal.SIGINT:
                    holder.rollback()
                    process.wait()
            finally:
                process.kill()
                process.wait()
        return run

    def under_way(self) -> set[str]:
        """Return the runs whose attempts say that they are under way, be they dead."""
        with self.database.engine().connect() as connection:
            return {
                *connection.execute(text("SELECT run_id FROM analytics.running_attempt")).scalars()
            }

    def dies(self, step: Step) -> None:
        run = self.in_a_process(step, signal.SIGKILL)
        for name in NAMES:
            self.model.fails(run, name)
        run.state = FAILED
        self.words.add(DIED)

    def is_stopped(self, step: Step) -> None:
        self.model.is_cancelled(self.in_a_process(step, signal.SIGINT))

    def waits_in_the_queue(self, step: Step) -> None:
        run = self.model.begin(self.window(step), step.facts)
        run.run_id = self.instance.create_run_for_job(
            self.job,
            tags={**range_tags(run.window), "dagster/max_retries": "0"},
            asset_selection=frozenset(map(AssetKey, run.facts)),
            status=DagsterRunStatus.QUEUED,
            remote_job_origin=RemoteJobOrigin(
                RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("here"), "repository"),
                FACTS_JOB,
            ),
        ).run_id

    def queued(self, step: Step) -> Run:
        """Return the run that waits for the longest time; where there is none, one begins to."""
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
        self.ended(run)

    def leaves_the_queue_and_fails(self, step: Step) -> None:
        run = self.queued(step)
        with self.broken(BREAK, IN_ONE_FACT.format(step.fact)):
            self.leaves_the_queue(run)
        self.ended(run, step.fact)

    def gets_late_rows(self, step: Step) -> None:
        """Late rows of an hour: where it is done, its facts run again, and none of the others."""
        start = self.window(step).start
        self.late_answers += 1
        execute(
            self.database,
            f"INSERT INTO answers VALUES ({1000 + self.late_answers}, {self.late_answers % 3}, "
            f"{100 + self.late_answers}, 5, 1, 'B', timestamptz '{start}' + interval '7 min')",
        )
        for name in NAMES:
            self.model.hours[name][start].changed = True
        asked = self.tick("late_data_sensor")
        busy = self.model.busy()
        changed = self.model.which(
            lambda hour: hour.changed and hour.status == SUCCESS and not hour.is_cancelled
        )
        self.agree("late data", expanded(asked), {n: h - busy[n] for n, h in changed.items()})
        for request in asked:
            window, facts = covered(request)
            self.execute(window, facts)
            self.ended(self.model.begin(window, facts))

    # --- who tells of it

    def tick(self, name: str) -> list[RunRequest]:
        data = sensor_tick(self.definitions, self.instance, name, self.cursors.get(name))
        self.cursors[name] = data.cursor
        for event in data.asset_events:
            self.instance.report_runless_asset_event(event)
        return list(data.run_requests or [])

    def look(self, first: str) -> None:
        """Ask everybody, one of them first, and compare what they tell with the model."""
        looks: dict[str, Callable[[], object]] = {
            "status": self.look_at_status,
            "schedule": self.look_at_schedule,
            "recovery": self.look_at_recovery,
            "alerts": self.look_at_incidents,
            # Dagster keeps what its pages have shown: they are looked at before it is put right.
            "pages": self.by_dagster,
        }
        self.know_the_hours()
        looks.pop(first)()
        for one in looks.values():
            one()
        self.look_by_sql()
        self.look_at_partitions()

    def know_the_hours(self) -> None:
        """Know the hours that are over, which stay the same until all have been asked."""
        while last_closed_hour_end(datetime.now(timezone.utc) + A_LOOK) != last_closed_hour_end():
            sleep(1)
        self.model.cover(last_closed_hour_end())

    def agree(self, who: str, told: object, known: object) -> None:
        TALLY["comparisons of sequences"] += 1
        TALLY["disagreements"] += told != known
        assert told == known, who

    def look_by_sql(self) -> None:
        with self.database.engine().connect() as connection:
            rows = connection.execute(text(BY_SQL)).all()
            wrong = connection.execute(
                text("SELECT pipeline_name, hour FROM analytics.wrong_hour GROUP BY 1, 2")
            ).all()
        told = {(fact, hour): (status, is_cancelled) for fact, hour, is_cancelled, status in rows}
        known = {
            (name, start): (hour.status, hour.is_cancelled)
            for name, hours in self.model.hours.items()
            for start, hour in hours.items()
            if hour.status is not None or hour.is_cancelled
        }
        self.agree("SQL", told, known)
        self.agree(
            "SQL over wrong hours",
            {name: {hour for fact, hour in wrong if fact == name} for name in NAMES},
            self.model.which(lambda hour: hour.is_wrong),
        )
        for name, hours in self.model.hours.items():
            begin, end = get_time_range(self.database.engine(), name)
            is_open = [start for start, hour in hours.items() if hour.status != SUCCESS]
            self.agree("the next window", (begin, end), (min([*is_open, end]), max(hours) + HOUR))

    def look_at_status(self) -> None:
        shown = call("status")
        bad = self.model.which(lambda hour: hour.status == FAILED or hour.is_wrong)
        done = self.model.which(lambda hour: hour.status == SUCCESS)
        missing = self.model.which(lambda hour: hour.status is None)
        rows = [row.split("\t") for row in shown.stdout.splitlines()[1:]]
        self.agree(
            "status",
            [row[:4] for row in rows],
            [
                [
                    name,
                    format_hour(max(done[name])) if done[name] else "none",
                    str(len(missing[name])),
                    str(len(bad[name])),
                ]
                for name in NAMES
            ],
        )
        self.agree("exit code of status", shown.exit_code, int(any(bad.values())))
        for verb, known in (
            ("failed", self.model.which(lambda hour: hour.status == FAILED)),
            ("is wrong", self.model.which(lambda hour: hour.is_wrong)),
        ):
            told, is_whole = named_hours(shown.stderr, verb)
            for name in NAMES:
                assert told[name] <= known[name], shown.stderr
                self.agree(f"what {verb}", told[name], known[name] if is_whole else told[name])

    def look_at_schedule(self) -> None:
        asked = schedule_tick(self.definitions, self.instance)
        self.agree("schedule", expanded(asked), self.model.wanted())

    def look_at_recovery(self) -> None:
        known = self.model.wanted() if self.model.was_away else self.model.failed_beside_others()
        self.model.was_away = False
        self.agree("recovery sensor", expanded(self.tick("recovery_sensor")), known)

    def look_at_incidents(self) -> None:
        self.tick("alert_sensor")
        cursor = self.cursors["alert_sensor"]
        state = State.from_cursor(KeptCursor(self.instance, alerts.NAME, cursor).read())
        told: dict[str, Told] = {kind: {name: set() for name in NAMES} for kind in (LIVE, CHECK)}
        for incident in state.incidents:
            for name, hours in incident.hours.items():
                told[incident.kind][name] |= hours
        self.agree("incidents", told, self.model.open_incidents())

    def by_dagster(self) -> dict[str, dict[datetime, str]]:
        partitions = hourly_partitions(self.first)
        told = {}
        for name in NAMES:
            keys = [partition_key(start) for start in self.model.hours[name]]
            found = self.instance.get_status_by_partition(AssetKey(name), keys, partitions) or {}
            told[name] = {hour_of(key): one.value for key, one in found.items() if one is not None}
        return told

    def look_at_partitions(self) -> None:
        told = self.by_dagster()
        known: dict[str, dict[datetime, str]] = {}
        for name, hours in self.model.hours.items():
            known[name] = {}
            for start, hour in hours.items():
                found = hour.by_dagster
                if hour.has_failed_before_it_was_cancelled and told[name].get(start) == "FAILED":
                    found = "FAILED"
                if found is not None:
                    known[name][start] = found
        self.agree("Dagster's partitions", told, known)

    def look_while_away(self) -> None:
        """Without a database the newest hour is asked for, and nobody says that all is well."""
        shown = call("status")
        assert shown.exit_code == 1
        assert "gone" in shown.stderr
        self.know_the_hours()
        newest = {max(self.model.hours[FUNNEL])}
        busy = self.model.busy()
        asked = schedule_tick(self.definitions, self.instance)
        self.agree("schedule while away", expanded(asked), {n: newest - busy[n] for n in NAMES})
        assert self.tick("recovery_sensor") == []
        self.model.was_away = True
        self.look_at_incidents()

    def end(self) -> None:
        """All is good after a run over everything, and nothing is open."""
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
            kind: {name: set() for name in NAMES} for kind in (LIVE, CHECK)
        }
        assert wrong_rows(self.database) == []


def covered(request: RunRequest) -> tuple[Window, list[str]]:
    """Return what a request asks for: a window, and facts."""
    first = request.partition_key or request.tags[RANGE_START_TAG]
    last = request.partition_key or request.tags[RANGE_END_TAG]
    keys = request.asset_selection or []
    return Window(hour_of(first), hour_of(last) + HOUR), [key.to_user_string() for key in keys]


def expanded(requests: Iterable[RunRequest]) -> Told:
    """Return by fact the hours that are asked for; each is but once."""
    asked: Told = {name: set() for name in NAMES}
    for window, facts in map(covered, requests):
        for name in facts:
            assert asked[name].isdisjoint(window.starts())
            asked[name].update(window.starts())
    return asked


def named_hours(stderr: str, verb: str) -> tuple[Told, bool]:
    """Return the hours that `status` names, and whether it names them all."""
    named: Told = {name: set() for name in NAMES}
    is_whole = " more reasons" not in stderr
    for line in stderr.splitlines():
        found = re.match(rf"(\w+) {verb} over ((?:\[[^)]*\)(?:, )?)+)( and \d+ more ranges)?", line)
        if found is None:
            continue
        is_whole = is_whole and found[3] is None
        for start, end in re.findall(r"\[(\S+), (\S+)\)", found[2]):
            named[found[1]].update(Window(parse_time(start), parse_time(end)).starts())
    return named, is_whole


QUICK = (
    *("passes", "fails", "is_found_wrong", "loses_the_database", "waits_in_vain"),
    *("waits_in_the_queue", "is_cancelled_in_the_queue", "leaves_the_queue_and_passes"),
    *("leaves_the_queue_and_fails", "gets_late_rows"),
)
IN_A_PROCESS = ("dies", "is_stopped")
LOOKS = ("status", "schedule", "recovery", "alerts", "pages")

steps = st.builds(
    Step,
    kind=st.sampled_from([*QUICK, *QUICK, *IN_A_PROCESS]),
    first=st.integers(0, HOURS - 1),
    hours=st.integers(1, 6),
    facts=st.sampled_from([NAMES, NAMES, *((name,) for name in NAMES)]),
    fact=st.sampled_from(NAMES),
    first_look=st.sampled_from(LOOKS),
)

QUESTIONS, SUMMARY = NAMES[:2]

EVERY_KIND = [
    Step("dies", 0, 4),
    Step("waits_in_the_queue", 2, 4, (SUMMARY, FUNNEL), first_look="schedule"),
    Step("fails", 1, 3, (SUMMARY,), fact=SUMMARY, first_look="recovery"),
    Step("is_found_wrong", 2, 2, (FUNNEL,), first_look="alerts"),
    Step("leaves_the_queue_and_fails", 0, 1, fact=FUNNEL, first_look="pages"),
    Step("waits_in_vain", 4, 3, (QUESTIONS, FUNNEL), fact=QUESTIONS, first_look="pages"),
    Step("is_stopped", 5, 3, first_look="pages"),
    Step("waits_in_the_queue", 4, 6, first_look="alerts"),
    Step("gets_late_rows", 4, 1, first_look="status"),
    Step("is_cancelled_in_the_queue", 0, 1, first_look="recovery"),
    Step("gets_late_rows", 3, 1, first_look="status"),
    Step("loses_the_database", 8, 2, first_look="recovery"),
    Step("waits_in_the_queue", 9, 2, (FUNNEL,), first_look="schedule"),
    Step("leaves_the_queue_and_passes", 0, 1, first_look="alerts"),
    Step("passes", 3, 2, (FUNNEL,), first_look="schedule"),
]

WHAT_IS_LEFT_AS_IT_WAS = [
    Step("fails", 0, 2, (FUNNEL,), fact=FUNNEL),
    Step("waits_in_vain", 0, 2, (FUNNEL,), fact=FUNNEL, first_look="pages"),
    Step("is_found_wrong", 0, 1, (FUNNEL,)),
    Step("passes", 0, 1, (FUNNEL,)),
    Step("is_cancelled_in_the_queue", 0, 1, (FUNNEL,)),
    Step("passes", 1, 1, (FUNNEL,)),
]


@pytest.mark.timeout(0)
def test_all_who_tell_of_hours_tell_the_same_after_every_step(
    server: URL,
    dagster_template: str,
    database: Database,
    spark: SparkSession,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @settings(
        max_examples=SEQUENCES,
        deadline=None,
        derandomize=SEQUENCES <= 10,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    )
    @example(EVERY_KIND)
    @example(WHAT_IS_LEFT_AS_IT_WAS)
    @given(st.lists(steps, min_size=SEQUENCE_STEPS, max_size=SEQUENCE_STEPS))
    def try_out(sequence: list[Step]) -> None:
        TALLY["sequences"] += 1
        number = TALLY["sequences"]
        records = create_database(server, f"sequence_{number}", dagster_template)
        platform = Platform(database, tmp_path / str(number), monkeypatch, records)
        with platform.held:
            for step in sequence:
                TALLY["steps of sequences"] += 1
                getattr(platform, step.kind)(step)
                platform.look(step.first_look)
            platform.end()
        drop_database(records)

    try_out()
