"""Generated sequences of runs: everyone who reports on hours agrees after every step.

A model of what the steps mean, which uses no code of ours, is compared with SQL over
`etl_metadata`, `status`, Dagster's partitions, the schedule, the recovery sensor and the open
incidents. The model knows two limits of Dagster:

- If an hour failed, and a later run over it was cancelled, Dagster may keep no failure.
- Dagster orders runs by when they were requested, not by when they ended.

`SEQUENCES` sets how many are tried, each of up to `SEQUENCE_STEPS` steps; `make test-deep` tries
many. A failure prints the failing sequence, there the shortest: add it as an `@example`.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from pyspark.sql import SparkSession
from sqlalchemy.engine import URL

from mcq_analytics.postgres.database import Database
from mcq_analytics_tests.agreement_model import FUNNEL, HOURS, NAMES, Step
from mcq_analytics_tests.agreement_steps import Platform
from mcq_analytics_tests.conftest import create_database, drop_database
from mcq_analytics_tests.tally import TALLY

SEQUENCES = int(os.environ.get("SEQUENCES", "1"))
SEQUENCE_STEPS = int(os.environ.get("SEQUENCE_STEPS", "4"))
IS_DEEP = SEQUENCES > 1

QUICK = (
    *("passes", "fails", "is_found_wrong", "loses_the_database", "gives_up_waiting"),
    *("waits_in_the_queue", "is_cancelled_in_the_queue", "leaves_the_queue_and_passes"),
    *("leaves_the_queue_and_fails", "gets_late_rows"),
)
IN_A_PROCESS = ("dies", "dies_after_its_commit", "is_stopped")
LOOKS = ("status", "schedule", "recovery", "alerts", "pages")

steps = st.builds(
    Step,
    kind=st.sampled_from([*QUICK, *QUICK, *IN_A_PROCESS]),
    first=st.integers(0, HOURS - 1),
    hours=st.integers(1, 6),
    fact=st.sampled_from(NAMES),
    known=st.integers(0, len(NAMES)),
    first_look=st.sampled_from(LOOKS),
)

QUESTIONS, SUMMARY = NAMES[:2]

EVERY_KIND = [
    Step("dies", 0, 4),
    Step("waits_in_the_queue", 2, 4, first_look="schedule"),
    Step("fails", 1, 3, SUMMARY, first_look="recovery"),
    Step("is_found_wrong", 2, 2, FUNNEL, first_look="alerts"),
    Step("leaves_the_queue_and_fails", 0, 1, FUNNEL, first_look="pages"),
    Step("gives_up_waiting", 4, 3, first_look="pages"),
    Step("dies_after_its_commit", 3, 2, known=1, first_look="schedule"),
    Step("is_stopped", 5, 3, first_look="pages"),
    Step("waits_in_the_queue", 4, 6, first_look="alerts"),
    Step("gets_late_rows", 4, 1, first_look="status"),
    Step("is_cancelled_in_the_queue", 0, 1, first_look="recovery"),
    Step("is_found_wrong", 2, 3, SUMMARY, first_look="status"),
    Step("gets_late_rows", 3, 1, first_look="status"),
    Step("loses_the_database", 8, 2, first_look="recovery"),
    Step("waits_in_the_queue", 9, 2, first_look="schedule"),
    Step("leaves_the_queue_and_passes", 0, 1, first_look="alerts"),
    Step("passes", 3, 2, first_look="schedule"),
]

HOURS_THAT_KEEP_THEIR_STATE = [
    Step("fails", 0, 2, FUNNEL),
    Step("gives_up_waiting", 0, 2, first_look="pages"),
    Step("is_found_wrong", 0, 1, QUESTIONS),
    Step("passes", 0, 1),
    Step("is_cancelled_in_the_queue", 0, 1),
    Step("passes", 1, 1),
]


@pytest.mark.timeout(0 if IS_DEEP else 900)
def test_everyone_who_reports_on_hours_agrees_after_every_step(
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
        # Shrinking repeats runs for hours, which only deep tests may do.
        phases=[Phase.explicit, Phase.reuse, Phase.generate, *([Phase.shrink] * IS_DEEP)],
    )
    @example(EVERY_KIND)
    @example(HOURS_THAT_KEEP_THEIR_STATE)
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
