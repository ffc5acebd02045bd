"""The three facts as assets: a thin wrapper of the function in `transforms`, with metadata."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from dagster import (
    AssetIn,
    AssetKey,
    AssetOut,
    AssetsDefinition,
    BackfillPolicy,
    HourlyPartitionsDefinition,
    MetadataValue,
    Output,
    TableColumn,
    TableColumnDep,
    TableColumnLineage,
    TableSchema,
    multi_asset,
)
from pyspark.sql import DataFrame

from mcq_analytics.definitions.run_attempt import redoing_step
from mcq_analytics.definitions.source_assets import IO_MANAGER_KEY
from mcq_analytics.model.base_tables import BASE_COLUMNS
from mcq_analytics.model.facts import (
    FACTS,
    KEY_MEANINGS,
    QUESTION_INTERACTION,
    TEST_FUNNEL,
    TEST_SUMMARY,
    UPDATED_AT_MEANING,
    Fact,
)
from mcq_analytics.postgres.errors import explaining
from mcq_analytics.transforms.student_tests import student_tests

GROUP = "facts"
STEP = "facts"
"""Name of the step that computes the facts, and of its pool, which lets in one run at a time."""

_PAGES = ("exactness", "operations", "architecture")

_VERSIONS: Mapping[str, str] = {
    QUESTION_INTERACTION.name: "1",
    TEST_SUMMARY.name: "1",
    TEST_FUNNEL.name: "1",
}
"""Raise a fact's version when its columns or their meaning change. Dagster then shows the hours
that an older version computed as outdated, each on its partition's page; it runs none of them."""

_FINAL_OPTION = (
    "answers.submitted_option",
    "answers.timestamp",
    "answers.answer_id",
    "sessions.expiry_time",
)

_SITTING = ("submissions.submit_time", "answers.timestamp", "sessions.expiry_time")

# The expiry decides which answers are valid: it is a source of every column computed from them.
_SOURCES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    QUESTION_INTERACTION.name: {
        "first_answer_time": ("answers.timestamp", "sessions.expiry_time"),
        "last_answer_time": ("answers.timestamp", "sessions.expiry_time"),
        "answer_count": ("answers.answer_id", "sessions.expiry_time"),
        "final_answer_option": _FINAL_OPTION,
        "is_correct": (*_FINAL_OPTION, "questions.correct_option"),
        "revisited": ("answers.answer_id", "sessions.expiry_time"),
        "time_spent": ("answers.timestamp", "sessions.expiry_time"),
    },
    TEST_SUMMARY.name: {
        "total_questions": ("answers.question_id", "sessions.expiry_time"),
        "questions_attempted": ("answers.question_id", "sessions.expiry_time"),
        "correct_answers": (*_FINAL_OPTION, "questions.correct_option"),
        "accuracy_percent": (*_FINAL_OPTION, "questions.correct_option"),
        "time_spent": ("answers.timestamp", "sessions.expiry_time"),
    },
    TEST_FUNNEL.name: {
        "total_submissions": ("submissions.submit_time",),
        "completed_submissions": ("submissions.completion_status",),
        "incomplete_submissions": ("submissions.completion_status",),
        "completion_rate": ("submissions.completion_status",),
        "avg_submit_time": _SITTING,
        "timed_submissions": _SITTING,
        "timed_microseconds": _SITTING,
    },
}


def fact_assets(hours: HourlyPartitionsDefinition, docs_url: str | None = None) -> AssetsDefinition:
    """Return the facts: hourly-partitioned assets of one step; one run computes a range of hours.

    The step cannot be split, because a run stores all facts in one transaction. Every output is the
    same DataFrame, from which the IO manager stores the facts at the first output. `docs_url` is
    the address of the pages under docs/.
    """

    @multi_asset(
        name=STEP,
        outs={fact.name: _out(fact, docs_url) for fact in FACTS},
        # By this metadata the IO manager knows that it loads an input of the facts.
        ins={name: AssetIn(metadata={"step": STEP}) for name in BASE_COLUMNS},
        internal_asset_deps={fact.name: {AssetKey(name) for name in fact.reads} for fact in FACTS},
        partitions_def=hours,
        backfill_policy=BackfillPolicy.single_run(),
        can_subset=False,
        pool=STEP,
        group_name=GROUP,
    )
    def facts(
        answers: DataFrame, questions: DataFrame, sessions: DataFrame, submissions: DataFrame
    ) -> Iterator[Output[DataFrame]]:
        with redoing_step(), explaining("the facts: planning their query"):
            computed = student_tests(answers, questions, sessions, submissions)
        for fact in FACTS:
            yield Output(computed, output_name=fact.name)

    return facts


def _out(fact: Fact, docs_url: str | None) -> AssetOut:
    return AssetOut(
        io_manager_key=IO_MANAGER_KEY,
        kinds={"pyspark", "postgres", "table"},
        owners=["team:analytics"],
        code_version=_VERSIONS[fact.name],
        description=_description(fact),
        metadata={
            "dagster/column_schema": _column_schema(fact),
            "dagster/column_lineage": column_lineage(fact),
            **{f"docs_{page}": _docs(page, docs_url) for page in _PAGES},
        },
    )


def _docs(page: str, docs_url: str | None) -> MetadataValue[str]:
    if docs_url is not None:
        return MetadataValue.url(f"{docs_url.rstrip('/')}/{page}.md")
    return MetadataValue.path(str(Path("docs") / f"{page}.md"))


def _description(fact: Fact) -> str:
    return (
        f"{fact.meaning}.\n\nA run brings every student's test that its hours touch to what a full "
        "recompute from the base tables gives, also after late, changed or deleted base rows. The "
        "three facts are computed together, in one transaction."
    )


def _column_schema(fact: Fact) -> TableSchema:
    return TableSchema(
        columns=[
            *(TableColumn(name, "id", description=KEY_MEANINGS[name]) for name in fact.key),
            *(
                TableColumn(column.name, column.type.value, description=column.meaning)
                for column in (*fact.columns, *fact.technical)
            ),
            TableColumn("updated_at", "timestamptz", description=UPDATED_AT_MEANING),
        ]
    )


def column_lineage(fact: Fact) -> TableColumnLineage:
    """Return the base columns from which each column of a fact is computed."""
    keys = {name: (f"{fact.key_table}.{name}",) for name in fact.key}
    return TableColumnLineage(
        deps_by_column={
            column: [
                TableColumnDep(asset_key=AssetKey(table), column_name=name)
                for table, name in (source.split(".") for source in sources)
            ]
            for column, sources in {**keys, **_SOURCES[fact.name]}.items()
        }
    )
