"""Asks everyone who reports on hours, and compares the answers with the model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta, timezone
from time import sleep

from dagster import AssetKey, DagsterInstance, Definitions, RunRequest
from sqlalchemy import text

from mcq_analytics.alerting.state import CHECK, LIVE, State
from mcq_analytics.api import get_time_range
from mcq_analytics.definitions.build import build_definitions
from mcq_analytics.definitions.partitions import (
    RANGE_END_TAG,
    RANGE_START_TAG,
    hour_of,
    hourly_partitions,
    partition_key,
)
from mcq_analytics.definitions.sensors import alerts
from mcq_analytics.definitions.sensors.kept_cursors import KeptCursor
from mcq_analytics.model.windows import HOUR, Window, format_hour, last_closed_hour_end, parse_time
from mcq_analytics.postgres.database import Database
from mcq_analytics.settings import load_settings
from mcq_analytics_tests.agreement_model import (
    ALL,
    FAILED,
    NAMES,
    SUCCESS,
    HoursByFact,
    Model,
)
from mcq_analytics_tests.commands import call
from mcq_analytics_tests.tally import TALLY
from mcq_analytics_tests.ticks import schedule_tick, sensor_tick

A_LOOK = timedelta(seconds=30)

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


class Looks:
    """A platform that is looked at: its database, Dagster instance and model."""

    database: Database
    instance: DagsterInstance
    model: Model
    cursors: dict[str, str | None]
    first: datetime

    @property
    def definitions(self) -> Definitions:
        """The definitions, loaded anew like in a new process, with the settings as they are now."""
        return build_definitions(load_settings())

    def tick(self, name: str) -> list[RunRequest]:
        data = sensor_tick(self.definitions, self.instance, name, self.cursors.get(name))
        self.cursors[name] = data.cursor
        for event in data.asset_events:
            self.instance.report_runless_asset_event(event)
        return list(data.run_requests or [])

    def look(self, first: str) -> None:
        """Ask everyone, one of them first, and compare the answers with the model."""
        looks: dict[str, Callable[[], object]] = {
            "status": self.look_at_status,
            "schedule": self.look_at_schedule,
            "recovery": self.look_at_recovery,
            "alerts": self.look_at_incidents,
            # Dagster caches what its pages show: here they are opened before it is corrected.
            "pages": self.by_dagster,
        }
        self.add_closed_hours()
        looks.pop(first)()
        for one in looks.values():
            one()
        self.look_by_sql()
        self.look_at_partitions()

    def add_closed_hours(self) -> None:
        """Add closed hours to the model; wait if an hour would close while everyone is asked."""
        while last_closed_hour_end(datetime.now(timezone.utc) + A_LOOK) != last_closed_hour_end():
            sleep(1)
        self.model.cover(last_closed_hour_end())

    def agree(self, who: str, reported: object, known: object) -> None:
        TALLY["comparisons of sequences"] += 1
        TALLY["disagreements"] += reported != known
        assert reported == known, f"{who}: {reported} instead of {known}"

    def look_by_sql(self) -> None:
        with self.database.engine().connect() as connection:
            rows = connection.execute(text(BY_SQL)).all()
            wrong = connection.execute(
                text("SELECT pipeline_name, hour FROM analytics.wrong_hour GROUP BY 1, 2")
            ).all()
        reported = {
            (fact, hour): (status, is_cancelled) for fact, hour, is_cancelled, status in rows
        }
        known = {
            (name, start): (hour.status, hour.is_cancelled)
            for name in NAMES
            for start, hour in self.model.hours.items()
            if hour.status is not None or hour.is_cancelled
        }
        self.agree("SQL", reported, known)
        self.agree(
            "SQL over wrong hours",
            {name: {hour for fact, hour in wrong if fact == name} for name in NAMES},
            self.model.wrong(),
        )
        is_open = self.model.which(lambda hour: hour.status != SUCCESS)
        for name in NAMES:
            begin, end = get_time_range(self.database.engine(), name)
            expected = (min([*is_open, end]), max(self.model.hours) + HOUR)
            self.agree("the next window", (begin, end), expected)

    def look_at_status(self) -> None:
        shown = call("status")
        failed = self.model.which(lambda hour: hour.status == FAILED)
        done = self.model.which(lambda hour: hour.status == SUCCESS)
        missing = self.model.which(lambda hour: hour.status is None)
        wrong = self.model.wrong()
        rows = [row.split("\t") for row in shown.stdout.splitlines()[1:]]
        self.agree(
            "status",
            [row[:4] for row in rows],
            [
                [
                    name,
                    format_hour(max(done)) if done else "none",
                    str(len(missing)),
                    str(len(failed | wrong[name])),
                ]
                for name in NAMES
            ],
        )
        is_bad = bool(failed) or any(wrong.values())
        self.agree("exit code of status", shown.exit_code, int(is_bad))
        for verb, known in (("failed", dict.fromkeys(NAMES, failed)), ("(?:is|are) wrong", wrong)):
            reported, is_complete = named_hours(shown.stderr, verb)
            for name in NAMES:
                assert reported[name] <= known[name], shown.stderr
                self.agree(
                    f"what {verb}", reported[name], known[name] if is_complete else reported[name]
                )

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
        reported: dict[str, HoursByFact] = {
            LIVE: {ALL: set()},
            CHECK: {name: set() for name in NAMES},
        }
        for incident in state.incidents:
            for name, hours in incident.hours.items():
                reported[incident.kind][name] |= hours
        self.agree("incidents", reported, self.model.open_incidents())

    def by_dagster(self) -> dict[str, dict[datetime, str]]:
        partitions = hourly_partitions(self.first)
        reported = {}
        for name in NAMES:
            keys = [partition_key(start) for start in self.model.hours]
            found = self.instance.get_status_by_partition(AssetKey(name), keys, partitions) or {}
            reported[name] = {
                hour_of(key): one.value for key, one in found.items() if one is not None
            }
        return reported

    def look_at_partitions(self) -> None:
        reported = self.by_dagster()
        known: dict[str, dict[datetime, str]] = {}
        for name in NAMES:
            known[name] = {}
            for start, hour in self.model.hours.items():
                found = hour.by_dagster(name)
                if (
                    hour.has_failed_before_it_was_cancelled
                    and reported[name].get(start) == "FAILED"
                ):
                    found = "FAILED"
                if found is not None:
                    known[name][start] = found
        self.agree("Dagster's partitions", reported, known)

    def look_without_database(self) -> None:
        """Without a database the newest hour is requested, and no one reports that all is well."""
        shown = call("status")
        assert shown.exit_code == 1
        assert "gone" in shown.stderr
        self.add_closed_hours()
        newest = {max(self.model.hours)} - self.model.busy()
        asked = schedule_tick(self.definitions, self.instance)
        self.agree("schedule while away", expanded(asked), newest)
        assert self.tick("recovery_sensor") == []
        self.model.was_away = True
        self.look_at_incidents()


def covered(request: RunRequest) -> Window:
    """Return the window of a request, which is for all facts."""
    assert request.asset_selection is None
    first = request.partition_key or request.tags[RANGE_START_TAG]
    last = request.partition_key or request.tags[RANGE_END_TAG]
    return Window(hour_of(first), hour_of(last) + HOUR)


def expanded(requests: Iterable[RunRequest]) -> set[datetime]:
    """Return the requested hours; assert that none is requested twice."""
    asked: set[datetime] = set()
    for window in map(covered, requests):
        assert asked.isdisjoint(window.starts())
        asked.update(window.starts())
    return asked


def named_hours(stderr: str, verb: str) -> tuple[HoursByFact, bool]:
    """Return the hours that `status` names, and whether it names all of them."""
    named: HoursByFact = {name: set() for name in NAMES}
    is_complete = " more reasons" not in stderr
    for line in stderr.splitlines():
        found = re.match(
            rf"([\w, ]+) {verb} over ((?:\[[^)]*\)(?:, )?)+)( and \d+ more ranges)?", line
        )
        if found is None:
            continue
        is_complete = is_complete and found[3] is None
        for start, end in re.findall(r"\[(\S+), (\S+)\)", found[2]):
            for name in NAMES if found[1] == ALL else found[1].split(", "):
                named[name].update(Window(parse_time(start), parse_time(end)).starts())
    return named, is_complete
