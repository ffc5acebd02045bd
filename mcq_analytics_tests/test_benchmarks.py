"""The yardsticks of the benchmarks: their plain SQL agrees with the recompute of the tests."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import pytest

from benchmarks import datasets, measures, page, records, results
from benchmarks.__main__ import CONTESTANTS
from benchmarks.contestants.contestant import Work
from benchmarks.contestants.ours import WarmOurs
from benchmarks.processes import Command, FailedError
from benchmarks.runs import Result
from benchmarks.server import Server
from mcq_analytics.postgres.database import Database
from mcq_analytics_tests.conftest import MakeDatabase
from mcq_analytics_tests.facts_of import scalar
from mcq_analytics_tests.recompute import differences

ANSWERS = 8_000
BOTH_SHAPES = pytest.mark.parametrize(
    "shape", [datasets.MANY, datasets.LARGE], ids=lambda shape: shape.name
)


def run_script(database: Database, name: str, values: Mapping[str, object] | None = None) -> None:
    """Run a script of the benchmarks, in one transaction."""
    connection = database.engine().raw_connection()
    try:
        connection.cursor().execute(datasets.script(name), values)
        connection.commit()
    finally:
        connection.close()


def wrong(database: Database) -> list[str]:
    with database.engine().connect() as connection:
        return differences(connection, database.source_schema, "plain")


@BOTH_SHAPES
def test_the_floor_and_the_increment_compute_the_facts_as_they_are_defined(
    database: Database, shape: datasets.Shape
) -> None:
    run_script(database, "data.sql", datasets.Dataset(shape, ANSWERS).parameters())
    run_script(database, "tables.sql")
    run_script(database, "recompute.sql")
    assert wrong(database) == []

    day = measures.DAY
    run_script(database, "arrive.sql", {"until": day.end})
    assert wrong(database)
    run_script(database, "increment.sql", {"start": day.start, "end": day.end})
    assert wrong(database) == []
    assert scalar(database, "SELECT count(*) FROM plain.test_funnel_fact") != 0


def test_a_longer_past_leaves_the_hours_to_measure_as_they_are(
    database: Database, make_database: MakeDatabase
) -> None:
    later = []
    for past, one in ((400, database), (4_000, make_database())):
        run_script(one, "data.sql", datasets.Dataset(datasets.MANY, past, 60).parameters())
        later.append(
            scalar(
                one,
                "SELECT string_agg(md5(CAST((student_id, question_id, submitted_option, "
                '"timestamp") AS text)), \'\' ORDER BY "timestamp", question_id) '
                "FROM later.answers",
            )
        )
    assert later[0] == later[1]


def result(measure: str, contestant: str, seconds: float) -> Result:
    is_warm = contestant == records.WARM
    return Result(
        *(measure, "many_200000", "many", 200_000, "", contestant),
        seconds=[seconds],
        wrong_rows=[0],
        database_ms=[1_000 * seconds],
        peak_bytes=[2**30],
        server_peak_bytes=[2**28],
        service_peak_bytes=[2**31] if is_warm else [],
        phases=[{"compute": 1.25, "java": 0.5}] if is_warm else [],
    )


def about(at: str) -> dict[str, object]:
    return {**results.session({"PostgreSQL": "18.4"}, 2.0), "at": at}


def test_results_replace_those_of_the_same_measure_and_contestant_only(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    first = [result("hour", "dbt", 4.0), result("hour", "mcq", 10.0), result("day", "dbt", 90.0)]
    results.add(first, about("2026-01-01 10:00"), file)
    results.add([result("hour", "mcq", 6.0)], about("2026-01-02 10:00"), file)

    stored = results.read(file)
    assert {
        (record["measure"], record["contestant"]): record["seconds"][0]
        for record in stored["results"]
    } == {("hour", "dbt"): 4.0, ("hour", "mcq"): 6.0, ("day", "dbt"): 90.0}
    assert list(stored["sessions"]) == ["2026-01-01 10:00", "2026-01-02 10:00"]

    results.add(
        [result("hour", "dbt", 5.0), result("day", "dbt", 80.0)], about("2026-01-03 10:00"), file
    )
    assert list(results.read(file)["sessions"]) == ["2026-01-02 10:00", "2026-01-03 10:00"]


def test_the_page_compares_what_was_measured_and_says_what_was_not(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    stored = results.add(
        [result("hour", "dbt", 4.0), result("hour", "mcq", 10.0)],
        about("2026-01-01 10:00"),
        tmp_path / "results.json",
    )
    page.write(stored, tmp_path)

    text = (tmp_path / "performance.md").read_text()
    reached = next(line for line in text.splitlines() if "1. one hour" in line)
    assert reached.split("|")[-2].strip() == "2.50 \N{MULTIPLICATION SIGN}"
    # Without the two seconds of Java's start.
    own = next(line for line in text.splitlines() if "without Java's start" in line)
    assert own.split("|")[-2].strip() == "2.00 \N{MULTIPLICATION SIGN}"
    assert page.NOTHING in text.split("## 24 hours")[1].split("##")[0]
    assert "{{" not in text
    assert (tmp_path / "images" / "performance-hour.svg").read_text().startswith("<svg")


def test_the_page_shows_what_a_warm_server_reaches_beside_the_cold_run(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    both = [
        result(measure, contestant, seconds)
        for measure, of_each in (
            ("hour", {"dbt": 4.0, "mcq": 10.0, "warm": 3.0}),
            ("all", {"floor": 5.0, "mcq": 20.0, "warm": 12.0}),
        )
        for contestant, seconds in of_each.items()
    ]
    stored = results.add(both, about("2026-01-01 10:00"), tmp_path / "results.json")
    for record in stored["results"]:
        if record["contestant"] != records.WARM:
            # As in results from before there was a server.
            del record["service_peak_bytes"]
    page.write(stored, tmp_path)

    text = (tmp_path / "performance.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    reached = {row[0]: row[-1] for row in rows}
    assert (
        reached["1. one hour with a warm Spark server, 200,000 answers"]
        == "0.75 \N{MULTIPLICATION SIGN}"
    )
    assert (
        reached["3. 720 hours into empty facts with a warm Spark server, 200,000 answers"]
        == "2.40 \N{MULTIPLICATION SIGN} (cold 4.00 \N{MULTIPLICATION SIGN})"
    )
    assert (
        reached["6. peak memory of a run's own process, warm Spark server, 200,000 answers"]
        == "1,024 MB (the server 2.0 GB)"
    )
    assert (
        reached["8. the facts of an hour within Spark, after ten runs, 200,000 answers"] == "1.25 s"
    )
    assert [
        "this project, warm Spark server",
        "one hour",
        "200,000",
        "1.0 GB",
        "2.0 GB",
        "0.25 GB",
    ] in rows
    assert ["this project", "one hour", "200,000", "1.0 GB", "\N{EN DASH}", "0.25 GB"] in rows


def test_the_page_knows_every_contestant() -> None:
    assert {name: kind.name for name, kind in CONTESTANTS.items()} == {
        name: name for name in records.TITLES
    }


def test_a_spark_server_ends_with_its_case_also_if_that_fails(tmp_path: Path) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Sleeps(WarmOurs):
        def _command(self, *arguments: str) -> Command:
            return Command((sys.executable, "-c", "import time; time.sleep(600)"), {}, tmp_path)

        def _wait_for(self, process: subprocess.Popen[bytes], log: Path) -> None:
            assert process.poll() is None
            started.append(process)
            raise FailedError(log.name)

    contestant = Sleeps(Work(cast("Server", None), tmp_path, tmp_path))
    (tmp_path / "home").mkdir()
    with pytest.raises(FailedError), contestant.kept_up(lambda: None):
        pass
    assert [process.returncode is not None for process in started] == [True]
