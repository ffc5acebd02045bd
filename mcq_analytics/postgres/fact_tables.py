"""Our tables as SQLAlchemy objects. Migrations create them; `compute` fills them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Float,
    Identity,
    Index,
    MetaData,
    Numeric,
    Table,
    Text,
    func,
)
from sqlalchemy.types import TypeEngine

from mcq_analytics.model.facts import (
    FACTS,
    KEY_MEANINGS,
    STUDENT_TEST,
    SUBMISSION_COUNTS,
    UPDATED_AT_MEANING,
    ColumnType,
    Fact,
    FactColumn,
)

_TYPES: Mapping[ColumnType, TypeEngine[Any]] = {
    ColumnType.TIMESTAMP: DateTime(timezone=True),
    ColumnType.COUNT: BigInteger(),
    ColumnType.SUM: Numeric(),
    ColumnType.FLOAT: Float(53),
    ColumnType.TEXT: Text(),
    ColumnType.BOOLEAN: Boolean(),
}


SUCCESS, FAILED, CANCELLED = "success", "failed", "cancelled"
"""Status of an attempt in `etl_metadata`. A cancelled attempt is not a failure."""


@dataclass(frozen=True)
class FactTables:
    """Our tables in one schema; `facts` by fact name.

    `submissions` has what each student's test adds to the funnel, `hours` the hours in which each
    student's test was active.
    """

    metadata: MetaData
    facts: Mapping[str, Table]
    submissions: Table
    hours: Table
    attempts: Table
    running: Table
    fingerprints: Table
    wrong: Table


def fact_tables(schema: str, key_types: Mapping[str, TypeEngine[Any]]) -> FactTables:
    """Return our tables in `schema`, with key columns of the types in `key_types`.

    `key_types` has `student_id`, `test_id` and `question_id`. It also has `submissions.test_id`,
    which may be a wider integer than in answers, and `student_test.student_id` and
    `student_test.test_id`, which hold the ids of both.
    """
    metadata = MetaData(schema=schema)
    return FactTables(
        metadata,
        facts={fact.name: _fact(metadata, fact, key_types) for fact in FACTS},
        submissions=_submissions(metadata, key_types),
        hours=_hours(metadata, key_types),
        attempts=etl_metadata_table(metadata),
        running=running_attempt_table(metadata),
        fingerprints=_fingerprints(metadata),
        wrong=wrong_hour_table(metadata),
    )


def _key(name: str, sql_type: TypeEngine[Any]) -> Column[Any]:
    return Column(name, sql_type, primary_key=True, autoincrement=False, comment=KEY_MEANINGS[name])


def _value(column: FactColumn) -> Column[Any]:
    return Column(
        column.name, _TYPES[column.type], nullable=column.nullable, comment=column.meaning
    )


def _fact(metadata: MetaData, fact: Fact, key_types: Mapping[str, TypeEngine[Any]]) -> Table:
    table = Table(
        fact.name,
        metadata,
        *(
            _key(name, key_types.get(f"{fact.key_table}.{name}", key_types[name]))
            for name in fact.key
        ),
        *map(_value, fact.columns),
        Column(
            "updated_at",
            DateTime(timezone=True),
            nullable=False,
            server_default=func.now(),
            comment=UPDATED_AT_MEANING,
        ),
        *map(_value, fact.technical),
        *(
            CheckConstraint(condition.sql, name=f"{fact.name}_{condition.name}_check")
            for condition in fact.conditions
        ),
        comment=fact.meaning,
    )
    Index(f"{fact.name}_updated_at_idx", table.c.updated_at)
    if fact.name == "test_summary_fact":
        Index(f"{fact.name}_test_id_idx", table.c.test_id, table.c.total_questions)
    if fact.name == "question_interaction_fact":
        Index(f"{fact.name}_test_id_idx", table.c.test_id, table.c.question_id)
    return table


def _submissions(metadata: MetaData, key_types: Mapping[str, TypeEngine[Any]]) -> Table:
    return Table(
        "student_test_submissions",
        metadata,
        # The test first: the rows of a test are read together.
        *(_key(name, key_types[f"student_test.{name}"]) for name in reversed(STUDENT_TEST)),
        *map(_value, SUBMISSION_COUNTS),
        comment="What each student's test with a submission adds to test_funnel_fact, as it was "
        "last computed",
    )


def _hours(metadata: MetaData, key_types: Mapping[str, TypeEngine[Any]]) -> Table:
    return Table(
        "student_test_hour",
        metadata,
        Column(
            "hour",
            DateTime(timezone=True),
            primary_key=True,
            comment="Start of the UTC hour",
        ),
        *(_key(name, key_types[f"student_test.{name}"]) for name in STUDENT_TEST),
        comment="Hours in which a student's test had valid answers or submissions when it was last "
        "computed: a run over such an hour finds it even if they are gone",
    )


def etl_metadata_table(metadata: MetaData) -> Table:
    """Return the table of attempts (docs/spec.md §3): one row per attempt that has ended."""
    table = Table(
        "etl_metadata",
        metadata,
        Column("id", BigInteger, Identity(always=True), primary_key=True, comment="Attempt"),
        Column("pipeline_name", Text, nullable=False, comment="The fact, by the name of its asset"),
        Column("window_start", DateTime(timezone=True), nullable=False, comment="First hour, UTC"),
        Column("window_end", DateTime(timezone=True), nullable=False, comment="End, exclusive"),
        Column("status", Text, nullable=False, comment="success, failed or cancelled"),
        Column("rows_read", BigInteger, comment="Rows read from the base tables"),
        Column("rows_written", BigInteger, comment="Fact rows inserted, updated or deleted"),
        Column(
            "started_at", DateTime(timezone=True), nullable=False, comment="Start of the attempt"
        ),
        Column("finished_at", DateTime(timezone=True), nullable=False, comment="Commit or failure"),
        Column("run_id", Text, comment="The Dagster run"),
        Column("error", Text, comment="Why it failed; null on success"),
        CheckConstraint(
            "status IN ('success', 'failed', 'cancelled')", name="etl_metadata_status_check"
        ),
        CheckConstraint("window_start < window_end", name="etl_metadata_window_check"),
        comment="One row per attempt of a fact over a window",
    )
    Index("etl_metadata_pipeline_idx", table.c.pipeline_name, table.c.finished_at)
    return table


def running_attempt_table(metadata: MetaData) -> Table:
    """Return the table of attempts in progress."""
    return Table(
        "running_attempt",
        metadata,
        Column("pipeline_name", Text, primary_key=True, comment="The fact"),
        Column("window_start", DateTime(timezone=True), nullable=False, comment="First hour, UTC"),
        Column("window_end", DateTime(timezone=True), nullable=False, comment="End, exclusive"),
        Column(
            "started_at", DateTime(timezone=True), nullable=False, comment="Start of the attempt"
        ),
        Column("run_id", Text, comment="The Dagster run"),
        comment="The attempt in progress, at most one per fact. If an attempt gets the fact's lock "
        "and finds a row here, then the process of that row died: it is recorded as failed",
    )


def _fingerprints(metadata: MetaData) -> Table:
    return Table(
        "hour_fingerprint",
        metadata,
        Column("hour", DateTime(timezone=True), primary_key=True, comment="Start of the UTC hour"),
        Column("answers", Text, comment="Fingerprint of the hour's answers"),
        Column("submissions", Text, comment="Fingerprint of the hour's submissions"),
        comment="Row count and hash sum, per hour, of the base rows that the facts were computed "
        "from. If they differ now, the hour is computed again",
    )


def wrong_hour_table(metadata: MetaData) -> Table:
    """Return the table of hours that a check found wrong and no later one found right."""
    return Table(
        "wrong_hour",
        metadata,
        Column("pipeline_name", Text, primary_key=True, comment="The fact"),
        Column("check_name", Text, primary_key=True, comment="The asset check"),
        Column("hour", DateTime(timezone=True), primary_key=True, comment="Start of the UTC hour"),
        Column("run_id", Text, nullable=False, comment="The Dagster run of the last check"),
        Column("found_at", DateTime(timezone=True), nullable=False, comment="When it was found"),
        Column("error", Text, nullable=False, comment="What is wrong"),
        comment="Hours over which a blocking check found a fact wrong, until it finds them right",
    )
