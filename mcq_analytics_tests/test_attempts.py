"""Attempts: one at a time, all or nothing, and nothing left behind by one that failed or died."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyspark import TaskContext
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.datasource import DataSourceReader
from pyspark.sql.types import StructType
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from mcq_analytics.compute.attempt import Attempt
from mcq_analytics.compute.lock import lock_holder, lock_key
from mcq_analytics.compute.merge import merge
from mcq_analytics.compute.report import AttemptReport
from mcq_analytics.compute.staging import staging_columns
from mcq_analytics.errors import McqError
from mcq_analytics.model.facts import FACTS, QUESTION_INTERACTION, TEST_FUNNEL, TEST_SUMMARY, Fact
from mcq_analytics.postgres.database import Database
from mcq_analytics.postgres.errors import explain
from mcq_analytics.postgres.fact_tables import fact_tables
from mcq_analytics.postgres.inspection import inspect_base_tables
from mcq_analytics.postgres.retries import TRIALS
from mcq_analytics.postgres.schema import key_types
from mcq_analytics.spark.sink import copy_to_staging, copying
from mcq_analytics.spark.source import SnapshotSource
from mcq_analytics.transforms import TRANSFORMS
from mcq_analytics_tests.conftest import WORKER
from mcq_analytics_tests.facts_of import (
    contents,
    execute,
    run_facts,
    scalar,
    window,
    wrong_rows,
)
from mcq_analytics_tests.servers import wait_until

NINE = window("2024-01-01T09", "2024-01-01T10")
STAGING = "SELECT count(*) FROM pg_class WHERE relname LIKE 'stg%'"
RUNNING = "SELECT count(*) FROM analytics.running_attempt"
LAST = "SELECT (status, error)::text FROM analytics.etl_metadata ORDER BY id DESC LIMIT 1"


@pytest.fixture
def answered(database: Database) -> Database:
    """A database with an answer and a submission at nine."""
    execute(
        database,
        "INSERT INTO answers VALUES (1, 7, 3, 5, 1, 'A', '2024-01-01 09:10Z')",
        "INSERT INTO submissions VALUES (7, 5, '2024-01-01 09:20Z', 'completed')",
    )
    return database


def test_an_attempt_that_fails_changes_no_fact_and_is_recorded(
    answered: Database, spark: SparkSession
) -> None:
    run_facts(answered, spark, NINE)
    before = contents(answered)
    execute(answered, "UPDATE answers SET submitted_option = 'B'")

    def broken(answers: DataFrame, **_: DataFrame) -> DataFrame:
        return answers.selectExpr("*", "1 / 0 AS never")

    with pytest.raises(Exception, match="DIVIDE_BY_ZERO"):
        fail_with(answered, spark, broken)
    assert contents(answered) == before
    assert "DIVIDE_BY_ZERO" in str(scalar(answered, LAST))
    assert scalar(answered, STAGING) == 0
    assert scalar(answered, RUNNING) == 0
    run_facts(answered, spark, NINE)
    assert wrong_rows(answered) == []


def fail_with(database: Database, spark: SparkSession, transform: Any) -> None:
    with Attempt(database, QUESTION_INTERACTION, NINE, "run") as attempt:
        attempt.commit(
            transform(**{name: attempt.read(spark, name) for name in QUESTION_INTERACTION.reads})
        )


def test_a_second_attempt_waits_for_the_first_and_says_for_whom(
    answered: Database, spark: SparkSession, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    done = threading.Event()
    with Attempt(answered, TEST_FUNNEL, NINE, "first-run") as first:

        def second() -> None:
            run_facts(answered, spark, NINE, [TEST_FUNNEL], run_id="second-run")
            done.set()

        thread = threading.Thread(target=second)
        thread.start()
        assert not done.wait(1.5)
        execute(answered, "INSERT INTO submissions VALUES (8, 5, '2024-01-01 09:30Z', 'timeout')")
        frames = {name: first.read(spark, name) for name in TEST_FUNNEL.reads}
        first.commit(TRANSFORMS[TEST_FUNNEL.name](**frames))
    thread.join(60)
    assert done.is_set()
    assert "waiting for mcq_analytics first-ru test_funnel_fact" in caplog.text
    assert scalar(answered, "SELECT total_submissions FROM analytics.test_funnel_fact") == 2


def test_all_inputs_are_as_of_one_snapshot(answered: Database, spark: SparkSession) -> None:
    with Attempt(answered, TEST_FUNNEL, NINE, "run") as attempt:
        execute(
            answered,
            "INSERT INTO submissions VALUES (7, 5, '2024-01-01 09:30Z', 'timeout')",
            "DELETE FROM answers",
        )
        frames = {name: attempt.read(spark, name) for name in TEST_FUNNEL.reads}
        attempt.commit(TRANSFORMS[TEST_FUNNEL.name](**frames))
    assert (
        scalar(
            answered,
            "SELECT (total_submissions, avg_submit_time)::text FROM analytics.test_funnel_fact",
        )
        == "(1,600)"
    )


def test_no_task_outlives_its_attempt(answered: Database, spark: SparkSession) -> None:
    """Here each fact has a join with an empty side, which Spark may know before the other is read.

    Its readers would then find their snapshot gone.
    """
    execute(
        answered,
        "INSERT INTO answers SELECT n, n, n, n % 3, 1, 'A', '2024-01-01 09:10Z' "
        "FROM generate_series(10, 20000) n",
        "DELETE FROM submissions",
    )
    for fact in FACTS:
        run_facts(answered, spark, NINE, [fact])
        assert list(spark.sparkContext.statusTracker().getActiveStageIds()) == []


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials follow each other quickly, and tables are waited for but a moment."""
    monkeypatch.setattr("mcq_analytics.postgres.retries.FIRST_WAIT_SECONDS", 0.05)
    monkeypatch.setattr("mcq_analytics.postgres.database.TABLE_LOCK_SECONDS", 1)


def funnel_disturbed_by(database: Database, spark: SparkSession, statement: str) -> AttemptReport:
    """Compute the funnel of nine o'clock; a task executes `statement` while Spark computes."""
    url = database.conninfo("disturber")

    def disturb(batches: Iterator[Any]) -> Iterator[Any]:
        from adbc_driver_postgresql import dbapi  # noqa: PLC0415

        with dbapi.connect(url, autocommit=True) as connection, connection.cursor() as cursor:
            cursor.execute(statement)
            cursor.fetchall()
        yield from batches

    with Attempt(database, TEST_FUNNEL, NINE, "cut-run") as attempt:
        frames = {name: attempt.read(spark, name) for name in TEST_FUNNEL.reads}
        frame = TRANSFORMS[TEST_FUNNEL.name](**frames)
        return attempt.commit(frame.mapInArrow(disturb, frame.schema))


def statuses(database: Database) -> object:
    return scalar(database, "SELECT array_agg(status ORDER BY id) FROM analytics.etl_metadata")


END_SESSIONS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
    "AND application_name LIKE 'mcq_analytics cut-run%'"
)


@pytest.mark.usefixtures("quick_retries")
def test_an_attempt_whose_sessions_were_ended_heals_in_a_new_snapshot(
    answered: Database, spark: SparkSession, caplog: pytest.LogCaptureFixture
) -> None:
    execute(answered, "CREATE SEQUENCE times")
    report = funnel_disturbed_by(
        answered,
        spark,
        # A row that the first snapshot cannot see tells which of the two was stored.
        "WITH late AS (INSERT INTO submissions SELECT 9, 5, '2024-01-01 09:40Z', 'timeout' "
        "WHERE nextval('times') = 1 RETURNING 1) "
        f"{END_SESSIONS} AND EXISTS (SELECT 1 FROM late)",
    )
    assert "trying again" in caplog.text
    assert statuses(answered) == ["failed", "success"]
    assert (report.rows_read, report.counts.inserted) == (3, 1)
    assert scalar(answered, "SELECT total_submissions FROM analytics.test_funnel_fact") == 2
    assert scalar(answered, STAGING) == scalar(answered, RUNNING) == 0


@pytest.mark.usefixtures("quick_retries")
def test_an_attempt_whose_sessions_are_ended_again_and_again_commits_nothing(
    answered: Database, spark: SparkSession
) -> None:
    with pytest.raises(Exception, match=r"snapshot|terminating|closed|Broken pipe") as failure:
        funnel_disturbed_by(answered, spark, END_SESSIONS)
    assert "the connection to the server was lost" in str(explain(failure.value, "the run"))
    assert scalar(answered, "SELECT count(*) FROM analytics.test_funnel_fact") == 0
    assert statuses(answered) == ["failed"] * TRIALS
    run_facts(answered, spark, NINE)
    assert wrong_rows(answered) == []
    assert scalar(answered, STAGING) == 0


@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize(
    ("state", "message", "tried"),
    [
        ("40001", "could not serialize access due to concurrent update", 3),
        ("40P01", "deadlock detected", 3),
        ("22012", "division by zero", 1),
        ("53100", "could not extend file", 1),
    ],
)
def test_a_fault_is_tried_again_only_if_it_may_pass(
    answered: Database, spark: SparkSession, state: str, message: str, tried: int
) -> None:
    """The fact's table refuses the first two merges."""
    execute(
        answered,
        "CREATE SEQUENCE times",
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF nextval('times') <= 2 THEN "
        f"RAISE EXCEPTION '{message}' USING ERRCODE = '{state}'; END IF; RETURN NEW; END $$",
        "CREATE TRIGGER refuse BEFORE INSERT ON analytics.test_funnel_fact "
        "FOR EACH ROW EXECUTE FUNCTION refuse()",
    )
    if tried == 1:
        with pytest.raises(Exception, match=message):
            run_facts(answered, spark, NINE, [TEST_FUNNEL])
        # Nothing was tried: the hours keep what they were.
    else:
        run_facts(answered, spark, NINE, [TEST_FUNNEL])
        assert statuses(answered) == ["failed", "failed", "success"]
    assert scalar(answered, "SELECT last_value FROM times") == tried


@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize("at", ["making a source", "planning its splits"])
def test_a_worker_that_ends_before_any_task_is_healed(
    answered: Database,
    spark: SparkSession,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at: str,
) -> None:
    first = tmp_path / "the first worker has ended"

    def end_the_first_worker(stage: str) -> None:
        if stage == at and not first.exists():
            first.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    class EndingSource(SnapshotSource):
        def __init__(self, options: dict[str, str]) -> None:
            end_the_first_worker("making a source")
            super().__init__(options)

        def reader(self, schema: StructType) -> DataSourceReader:
            end_the_first_worker("planning its splits")
            return super().reader(schema)

    monkeypatch.setattr("mcq_analytics.spark.source.SnapshotSource", EndingSource)
    run_facts(answered, spark, NINE, [TEST_FUNNEL])
    assert first.exists()
    assert statuses(answered) == ["failed", "success"]
    assert [line for line in wrong_rows(answered) if "funnel" in line] == []


@pytest.mark.usefixtures("quick_retries")
def test_a_table_that_is_locked_for_a_while_is_waited_for_in_several_trials(
    answered: Database, spark: SparkSession
) -> None:
    thread = threading.Thread(target=run_facts, args=(answered, spark, NINE, [TEST_FUNNEL]))
    with answered.engine().begin() as other:
        other.execute(text("LOCK TABLE analytics.test_funnel_fact IN SHARE MODE"))
        thread.start()
        wait_until(lambda: statuses(answered) is not None)
    thread.join(60)
    assert str(statuses(answered)).count("success") == 1
    assert "lock timeout" in str(scalar(answered, "SELECT min(error) FROM analytics.etl_metadata"))


@pytest.mark.parametrize("patience", [0, 1])
def test_a_run_waits_for_another_no_longer_than_it_was_told(
    answered: Database, patience: int
) -> None:
    hasty = dataclasses.replace(answered, lock_seconds=patience)
    with Attempt(answered, TEST_FUNNEL, NINE, "first-run"):
        with (
            pytest.raises(
                McqError,
                match=f"waited {patience} s for mcq_analytics first-ru test_funnel_fact .*"
                "raise --lock-timeout",
            ),
            Attempt(hasty, TEST_FUNNEL, NINE, "second-run"),
        ):
            pass
        # It has tried nothing, so the hours keep their status.
        assert scalar(answered, "SELECT count(*) FROM analytics.etl_metadata") == 0


def test_an_attempt_that_died_had_ended_before_its_retry_began(
    answered: Database, spark: SparkSession
) -> None:
    dead = Attempt(answered, TEST_FUNNEL, NINE, "first-run")
    dead.begin()
    dead.close()
    run_facts(answered, spark, NINE, [TEST_FUNNEL], run_id="its-retry")
    told = (
        "SELECT array_agg(run_id || ' ' || status ORDER BY finished_at) FROM analytics.etl_metadata"
    )
    assert scalar(answered, told) == ["first-run failed", "its-retry success"]
    order = (
        "SELECT d.started_at < d.finished_at AND d.finished_at <= r.started_at "
        "FROM analytics.etl_metadata d, analytics.etl_metadata r "
        "WHERE d.run_id = 'first-run' AND r.run_id = 'its-retry'"
    )
    assert scalar(answered, order) is True


def test_no_session_waits_for_ever(answered: Database) -> None:
    hasty = dataclasses.replace(answered, statement_seconds=1)
    with hasty.engine().connect() as connection:
        shown = connection.execute(
            text(
                "SELECT name, setting FROM pg_settings WHERE name ~ '^(statement|lock|idle_session|"
                "idle_in_transaction_session)_timeout$'"
            )
        )
        assert dict(shown.tuples().all()) == {
            "statement_timeout": "1000",
            "lock_timeout": "60000",
            "idle_session_timeout": "1000",
            "idle_in_transaction_session_timeout": "1000",
        }
        with pytest.raises(DBAPIError, match="statement timeout") as failure:
            connection.execute(text("SELECT pg_sleep(30)"))
    assert "raise MCQ_STATEMENT_TIMEOUT" in str(explain(failure.value, "the run"))


def test_a_task_that_fails_after_its_rows_were_committed_doubles_none(
    answered: Database, spark: SparkSession
) -> None:
    """The rows of the first attempt are in the staging table, and do not count."""
    with answered.engine().begin() as connection:
        base = inspect_base_tables(connection, "public")
        kinds = {name: base.id_type("submissions", name) for name in TEST_FUNNEL.key}
        connection.exec_driver_sql(
            f"CREATE TABLE analytics.staged ({staging_columns(TEST_FUNNEL, kinds)})"
        )
        connection.exec_driver_sql("CREATE TABLE analytics.touched AS SELECT 5::bigint AS test_id")
    frame = spark.sql(
        "SELECT 5L AS test_id, 1L AS total_submissions, 1L AS completed_submissions, "
        "0L AS incomplete_submissions, 100D AS completion_rate, CAST(NULL AS double) AS "
        "avg_submit_time, array(473353) AS active_hours"
    )

    def fail_once(batches: Iterator[Any]) -> Iterator[Any]:
        yield from batches
        context = TaskContext.get()
        assert context is not None
        if context.attemptNumber() == 0:
            raise RuntimeError("the task fails after its copy")

    url = answered.conninfo()
    rows = copying(frame, url, "analytics", "staged").mapInArrow(fail_once, "task_attempt_id long")
    tasks = [row.task_attempt_id for row in rows.collect()]
    assert scalar(answered, "SELECT count(*) FROM analytics.staged") == 2
    tables = fact_tables("analytics", key_types(base))
    with answered.engine().begin() as connection:
        counts = merge(
            connection,
            TEST_FUNNEL,
            fact_table=tables.facts[TEST_FUNNEL.name],
            hours_table=tables.hours[TEST_FUNNEL.name],
            staged="analytics.staged",
            touched="analytics.touched",
            test_questions=None,
            tasks=tasks,
            window=NINE,
        )
    assert (counts.inserted, counts.updated, counts.deleted) == (1, 0, 0)


def test_rows_are_copied_by_several_tasks_and_all_arrive(
    database: Database, spark: SparkSession
) -> None:
    execute(database, "CREATE TABLE analytics.staged (id bigint, task_attempt_id bigint)")
    frame = spark.range(0, 10_000, 1, 4)
    tasks = copy_to_staging(frame, database.conninfo(), "analytics", "staged")
    assert len(set(tasks)) == 4
    assert (
        scalar(
            database, "SELECT (count(*), count(DISTINCT id), sum(id))::text FROM analytics.staged"
        )
        == "(10000,10000,49995000)"
    )


def test_many_touched_rows_are_read_in_even_splits(
    database: Database, spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcq_analytics.compute.inputs.KEYS_PER_SPLIT", 1_000)
    execute(
        database,
        "INSERT INTO answers SELECT n, n % 500, n % 40, n % 3, n, 'A', "
        "'2024-01-01 09:00Z'::timestamptz + n * interval '0.1 s' FROM generate_series(1, 20000) n",
    )
    with Attempt(database, QUESTION_INTERACTION, NINE, "run") as attempt:
        answers = attempt.read(spark, "answers")
        sizes = [len(part) for part in answers.rdd.glom().collect()]
        frames = {name: attempt.read(spark, name) for name in QUESTION_INTERACTION.reads}
        report = attempt.commit(TRANSFORMS[QUESTION_INTERACTION.name](**frames))
    assert len(sizes) == -(-report.touched // 1_000)
    assert sum(sizes) == 20_000
    assert max(sizes) < 2 * min(sizes)
    assert report.rows_read == 20_000


@pytest.mark.parametrize(
    ("fact", "exchanges"), [(QUESTION_INTERACTION, 0), (TEST_SUMMARY, 0), (TEST_FUNNEL, 4)]
)
def test_few_rows_are_hardly_sent_about_between_stages(
    answered: Database,
    spark: SparkSession,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fact: Fact,
    exchanges: int,
) -> None:
    def exchanges_in_plan() -> int:
        with Attempt(answered, fact, NINE, "run") as attempt:
            inputs = {name: attempt.read(spark, name) for name in fact.reads}
            TRANSFORMS[fact.name](**inputs).explain()
            return capsys.readouterr().out.count("Exchange")

    assert exchanges_in_plan() == exchanges
    monkeypatch.setattr("mcq_analytics.compute.inputs.QUICK_RECORDS", -1)
    assert exchanges_in_plan() >= 5


def test_the_facts_have_locks_of_their_own(database: Database) -> None:
    keys = {lock_key(schema, fact) for schema in ("analytics", "other") for fact in FACTS}
    assert len(keys) == 6
    with database.engine().connect() as connection:
        assert lock_holder(connection, lock_key("analytics", TEST_FUNNEL)) == "another run"


@pytest.fixture
def other_role(database: Database) -> Iterator[Database]:
    """The database as a role sees it that may log in and read no statistics of others."""
    role = f"waiting_{WORKER}"
    execute(database, f"CREATE ROLE {role} LOGIN")
    yield dataclasses.replace(database, url=database.url.set(username=role), lock_seconds=0)
    execute(database, f"DROP ROLE {role}")


def test_who_waits_for_a_session_of_another_role_is_told_which_it_is(
    answered: Database, other_role: Database
) -> None:
    def told() -> str:
        with (
            pytest.raises(McqError) as refused,
            Attempt(other_role, TEST_FUNNEL, NINE, "a-run-of-another"),
        ):
            pass
        return str(refused.value)

    with Attempt(answered, TEST_FUNNEL, NINE, "a-run-of-the-owner"):
        named = r"waited 0 s for mcq_analytics a-run-of test_funnel_fact \(server process \d+\),"
        assert re.search(named, told())
    key = lock_key("analytics", TEST_FUNNEL)
    with answered.engine("").connect() as nameless:
        nameless.execute(text("SELECT pg_advisory_lock(:key)"), {"key": key})
        owner = nameless.execute(text("SELECT current_user")).scalar_one()
        assert re.search(rf"waited 0 s for a session of {owner} \(server process \d+\),", told())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("DROP TABLE sessions", "the base table public.sessions is missing"),
        ("ALTER TABLE answers DROP test_id", "public.answers has no column test_id"),
        (
            "ALTER TABLE answers ALTER student_id TYPE numeric",
            "the id public.answers.student_id has the unsupported type numeric",
        ),
        (
            "ALTER TABLE answers ALTER student_id TYPE text",
            "student_id is a text in public.answers but a number in public.submissions",
        ),
        (
            "ALTER TABLE answers ALTER question_id TYPE integer",
            "analytics.question_interaction_fact.question_id is bigint, but the base tables have",
        ),
        (
            "DROP TABLE analytics.test_funnel_fact",
            "the table analytics.test_funnel_fact is missing: run mcq-analytics init-db",
        ),
    ],
)
def test_a_table_that_is_not_as_it_must_be_is_named(
    answered: Database, damage: str, message: str
) -> None:
    execute(answered, damage)
    with (
        pytest.raises(McqError, match=message),
        Attempt(answered, QUESTION_INTERACTION, NINE, "run"),
    ):
        pass
    assert message.split(maxsplit=1)[0] in str(scalar(answered, LAST))


def test_the_password_is_in_no_plan_of_spark(answered: Database, spark: SparkSession) -> None:
    url = answered.url.set(password="s3cret-p4ss")
    database = Database(url, "public", "analytics")
    with Attempt(database, TEST_FUNNEL, NINE, "run") as attempt:
        frame = attempt.read(spark, "answers")
        plan = frame._jdf.queryExecution().toString()
    assert "s3cret" not in plan
    with database.engine().connect() as connection:
        assert (
            connection.execute(
                text("SELECT count(*) FROM analytics.etl_metadata WHERE error LIKE '%s3cret%'")
            ).scalar()
            == 0
        )
