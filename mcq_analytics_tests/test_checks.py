"""Asset checks: what they find in facts that were tampered with, and what happens then."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime

import pytest
from dagster import (
    AssetCheckEvaluation,
    AssetCheckSeverity,
    AssetSelection,
    DagsterInstance,
    Definitions,
    ExecuteInProcessResult,
    define_asset_job,
)
from pyspark.sql import SparkSession
from sqlalchemy.engine import URL

from mcq_analytics.definitions import checks
from mcq_analytics.definitions.build import FACTS_JOB, build_definitions
from mcq_analytics.definitions.partitions import range_tags
from mcq_analytics.definitions.run_state.run_errors import error_of_run
from mcq_analytics.model.facts import FACTS_BY_NAME, IdType
from mcq_analytics.model.windows import HOUR, Window, parse_hour
from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.inspection import inspect_base_tables
from mcq_analytics.quality.audits import Audits, Recomputed
from mcq_analytics.settings import load_settings
from mcq_analytics_tests.commands import call, fails
from mcq_analytics_tests.conftest import (
    create_database,
    drop_database,
    made_databases,
)
from mcq_analytics_tests.facts_of import execute, run_facts, scalar, wrong_rows

FIRST = parse_hour("2024-01-01T00:00")
DAY = Window(FIRST, FIRST + 24 * HOUR)
THREE = Window(FIRST, FIRST + 3 * HOUR)

Found = dict[tuple[str, str], AssetCheckEvaluation]


def recomputed(database: Database, fact: str, window: Window, seed: int = 0) -> Recomputed:
    with database.engine().connect() as plain:
        connection = plain.execution_options(isolation_level="REPEATABLE READ")
        base = inspect_base_tables(connection, "public")
        audits = Audits(FACTS_BY_NAME[fact], base, "analytics", window)
        return audits.recomputed(connection, seed)


CHANGES = {
    "question_interaction_fact": ["answer_count = answer_count + 1", "is_correct = NOT is_correct"],
    "test_summary_fact": ["total_questions = total_questions + 1", "time_spent = time_spent + 1"],
    "test_funnel_fact": [
        "avg_submit_time = avg_submit_time + 1",
        "total_submissions = total_submissions + 1, incomplete_submissions = 1",
    ],
}


@pytest.fixture(scope="module")
def template(server: URL, templates: Callable[[IdType], str], spark: SparkSession) -> Iterator[str]:
    """A database whose facts of three hours are exact: three students, two tests."""
    with made_databases(server, templates) as make:
        made = make()
        execute(
            made,
            "INSERT INTO questions SELECT q, 'A' FROM generate_series(1, 3) q",
            "INSERT INTO sessions VALUES (1, NULL)",
            "INSERT INTO answers SELECT n, n % 3, 1 + n % 3, n % 2, 1, 'A', "
            f"timestamptz '{FIRST}' + n * interval '10 min' FROM generate_series(0, 17) n",
            "INSERT INTO submissions SELECT n % 3, n % 2, timestamptz "
            f"'{FIRST}' + n * interval '25 min', 'completed' FROM generate_series(1, 6) n",
        )
        run_facts(made, spark, THREE)
        assert wrong_rows(made) == []
        yield str(made.url.database)


@pytest.fixture
def answered(server: URL, template: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """A copy of that database."""
    url = create_database(server, "checked", template)
    monkeypatch.setenv("DB_DEV_URL", url.render_as_string(hide_password=False))
    yield Database(url, "public", "analytics")
    drop_database(url)


@pytest.mark.parametrize(("fact", "change"), [(f, c) for f, some in CHANGES.items() for c in some])
def test_a_row_that_was_tampered_with_is_wrong(answered: Database, fact: str, change: str) -> None:
    execute(answered, f"UPDATE analytics.{fact} SET {change} WHERE test_id = 1")
    found = recomputed(answered, fact, THREE)
    assert found.wrong != ()
    assert found.awaiting == ()


def test_a_missing_or_surplus_row_is_wrong(answered: Database) -> None:
    execute(
        answered,
        "DELETE FROM analytics.test_summary_fact WHERE student_id = 1",
        "INSERT INTO analytics.test_funnel_fact SELECT 7, total_submissions, "
        "completed_submissions, incomplete_submissions, completion_rate, avg_submit_time, now(), "
        "timed_submissions, timed_microseconds FROM analytics.test_funnel_fact LIMIT 1",
        f"INSERT INTO analytics.student_test_hour (hour, student_id, test_id) "
        f"VALUES ('{FIRST}', 1, 7)",
    )
    assert set(recomputed(answered, "test_summary_fact", THREE).wrong) == {"(1,0)", "(1,1)"}
    assert recomputed(answered, "test_funnel_fact", THREE).wrong == ("(7)",)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE analytics.student_test_submissions SET completed_submissions = 0",
        "UPDATE analytics.student_test_submissions SET timed_microseconds = timed_microseconds + 1",
        "DELETE FROM analytics.student_test_submissions WHERE student_id = 1",
    ],
)
def test_what_a_students_test_adds_to_the_funnel_is_checked_and_so_is_the_sum(
    answered: Database, change: str
) -> None:
    execute(answered, change)
    found = recomputed(answered, "test_funnel_fact", THREE)
    # Rows of students' tests have two ids, rows of the funnel one.
    assert {key.count(",") for key in found.wrong} == {0, 1}
    assert found.awaiting == ()


def test_the_sum_of_a_large_test_is_checked_in_as_many_hours_as_its_share_allows(
    answered: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcq_analytics.quality.audits.SUMMED_ROWS", 3)
    execute(
        answered,
        "UPDATE analytics.test_funnel_fact SET avg_submit_time = 1",
        "UPDATE analytics.test_funnel_fact SET total_submissions = 90, incomplete_submissions = "
        "90 - completed_submissions WHERE test_id = 1",
    )
    found: Counter[str] = Counter()
    for seed in range(100):
        found.update(recomputed(answered, "test_funnel_fact", THREE, seed).wrong)
    # Nine submissions may be summed up over three hours: a tenth of the large test. It is drawn
    # from two tests.
    assert found.keys() == {"(0)", "(1)"}
    assert found["(0)"] == 100
    assert 2 <= found["(1)"] <= 10


@pytest.mark.parametrize(
    "change",
    [
        "INSERT INTO answers VALUES (99, 1, 2, 1, 1, 'B', timestamptz '{}' + interval '5 h')",
        "INSERT INTO answers VALUES (99, 1, 2, 1, 1, 'B', timestamptz '{}' + interval '1 min')",
        "UPDATE questions SET correct_option = 'B'",
        "UPDATE sessions SET expiry_time = timestamptz '{}' + interval '1 h'",
        "DELETE FROM answers WHERE test_id = 1",
    ],
)
def test_a_row_whose_base_rows_have_changed_since_awaits_a_run_and_is_not_wrong(
    answered: Database, change: str
) -> None:
    execute(answered, change.format(FIRST))
    found = recomputed(answered, "question_interaction_fact", THREE)
    assert found.wrong == ()
    assert found.awaiting != ()


def test_a_row_that_awaited_a_run_is_right_after_it(
    answered: Database, spark: SparkSession
) -> None:
    execute(answered, "UPDATE questions SET correct_option = 'B'", "DELETE FROM sessions")
    assert recomputed(answered, "test_summary_fact", THREE).awaiting != ()
    run_facts(answered, spark, THREE)
    assert recomputed(answered, "test_summary_fact", THREE).awaiting == ()


def run(instance: DagsterInstance, window: Window) -> ExecuteInProcessResult:
    job = build_definitions(load_settings()).resolve_job_def(FACTS_JOB)
    return job.execute_in_process(
        instance=instance,
        tags={**range_tags(window), "dagster/max_retries": "0"},
        raise_on_error=False,
    )


def evaluations(result: ExecuteInProcessResult) -> Found:
    found = result.get_asset_check_evaluations()
    return {(one.asset_key.to_user_string(), one.check_name): one for one in found}


def test_every_run_of_a_fact_is_checked_and_missing_counterparts_are_a_warning(
    answered: Database, instance: DagsterInstance
) -> None:
    execute(answered, "DELETE FROM questions WHERE question_id = 3", "DELETE FROM sessions")
    result = run(instance, THREE)
    assert result.success
    found = evaluations(result)
    assert {check for fact, check in found if fact == "test_funnel_fact"} == {
        checks.RECOMPUTED,
        checks.REFERENCES,
        checks.FRESH,
    }
    assert {fact for fact, _ in found} == set(FACTS_BY_NAME)
    assert {key for key, one in found.items() if not one.passed} == {
        *((fact, checks.FRESH) for fact in FACTS_BY_NAME),
        ("question_interaction_fact", checks.REFERENCES),
    }
    noted = found["question_interaction_fact", checks.REFERENCES]
    assert noted.severity is AssetCheckSeverity.WARN
    assert noted.description == "answers without question: 6, answers without session: 18"
    bounds = [noted.metadata[f"window_{bound}"].value for bound in ("start", "end")]
    assert bounds == [moment.timestamp() for moment in (THREE.start, THREE.end)]


@pytest.fixture
def check(instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Found]:
    """A function that runs all checks, and nothing else, over all hours so far."""
    monkeypatch.setenv("MCQ_LOOKBACK_HOURS", "1000000")

    def run_checks() -> Found:
        job = define_asset_job("checks", AssetSelection.all_asset_checks())
        definitions = Definitions.merge(build_definitions(load_settings()), Definitions(jobs=[job]))
        result = definitions.resolve_job_def("checks").execute_in_process(
            instance=instance, raise_on_error=False
        )
        return evaluations(result)

    return run_checks


def test_a_fact_is_fresh_when_the_last_hour_or_the_one_before_is_computed(
    database: Database, check: Callable[[], Found], closed: datetime
) -> None:
    for late, fresh in ((2, False), (1, True), (0, True)):
        execute(
            database,
            "INSERT INTO analytics.hour_fingerprint (hour) "
            f"VALUES ('{closed - (late + 1) * HOUR}')",
        )
        assert check()["test_summary_fact", checks.FRESH].passed is fresh


def test_a_check_that_runs_alone_finds_wrong_rows(
    answered: Database, check: Callable[[], Found]
) -> None:
    assert check()["test_funnel_fact", checks.RECOMPUTED].passed
    execute(answered, "UPDATE analytics.test_funnel_fact SET avg_submit_time = 5")
    found = check()["test_funnel_fact", checks.RECOMPUTED]
    assert not found.passed
    assert found.severity is AssetCheckSeverity.ERROR
    assert found.blocking


def test_a_row_that_breaks_a_constraint_fails_its_run_in_one_line_and_is_not_stored(
    answered: Database, instance: DagsterInstance
) -> None:
    """A trigger spoils every row that the run writes, as if it was computed wrongly."""
    execute(
        answered,
        "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "NEW.completion_rate = 101; RETURN NEW; END $$",
        "CREATE TRIGGER spoil BEFORE INSERT ON analytics.test_funnel_fact "
        "FOR EACH ROW EXECUTE FUNCTION spoil()",
        "TRUNCATE analytics.test_funnel_fact, analytics.student_test_submissions",
    )
    command = call("run", "--start", f"{FIRST:%Y-%m-%dT%H}", "--end", "2024-01-01T03")
    fails(
        command,
        1,
        f"error: the facts over {THREE}: a computed row breaks a rule of its fact (new row "
        'for relation "test_funnel_fact" violates check constraint '
        '"test_funnel_fact_completion_rate_check"): nothing of it was stored; ',
    )
    assert len(command.stderr.splitlines()) == 1
    assert scalar(answered, "SELECT count(*) FROM analytics.test_funnel_fact") == 0


def test_a_wrong_fact_fails_its_run_with_check_keys_and_remedy_in_every_message(
    answered: Database, instance: DagsterInstance
) -> None:
    """A trigger spoils every row that the run writes, as if it was computed wrongly."""
    execute(
        answered,
        "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "NEW.avg_submit_time = 5; RETURN NEW; END $$",
        "CREATE TRIGGER spoil BEFORE INSERT ON analytics.test_funnel_fact "
        "FOR EACH ROW EXECUTE FUNCTION spoil()",
        "TRUNCATE analytics.test_funnel_fact, analytics.student_test_submissions",
    )
    command = call("run", "--start", f"{FIRST:%Y-%m-%dT%H}", "--end", "2024-01-01T03")
    said = (
        f"test_funnel_fact over {THREE}: the check rows_equal_a_recompute failed (student tests "
        f"compared: 6, rows wrong: 2, rows awaiting a run: 0, wrong: (0), (1)): {checks.REMEDY}"
    )
    fails(command, 1, f"error: {said}")
    [run] = instance.get_runs()
    assert error_of_run(instance, run.run_id) == said
    shown = call("status")
    fails(shown, 1, f"test_funnel_fact is wrong over {THREE}: {said.partition(': ')[2]}")
    rows = {row.split("\t")[0]: row.split("\t")[3] for row in shown.stdout.splitlines()}
    assert rows["test_funnel_fact"] == "3"
    assert rows["test_summary_fact"] == "0"


def test_the_other_facts_of_a_run_are_checked_even_if_one_is_wrong(
    answered: Database, check: Callable[[], Found]
) -> None:
    execute(answered, "UPDATE analytics.test_funnel_fact SET avg_submit_time = 5")
    found = check()
    assert not found["test_funnel_fact", checks.RECOMPUTED].passed
    assert found["test_summary_fact", checks.RECOMPUTED].passed
