"""The three facts as assets: thin wrappers of the functions in `transforms`, with metadata."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from dagster import (
    AssetIn,
    AssetKey,
    AssetsDefinition,
    BackfillPolicy,
    HourlyPartitionsDefinition,
    MetadataValue,
    TableColumn,
    TableColumnDep,
    TableColumnLineage,
    TableSchema,
    asset,
)
from pyspark.sql import DataFrame

from mcq_analytics.definitions.source_assets import IO_MANAGER_KEY
from mcq_analytics.model.facts import (
    KEY_MEANINGS,
    QUESTION_INTERACTION,
    TEST_FUNNEL,
    TEST_SUMMARY,
    UPDATED_AT_MEANING,
    Fact,
)
from mcq_analytics.transforms import funnel, interactions, summary

GROUP = "facts"
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
        "avg_submit_time": ("submissions.submit_time", "answers.timestamp", "sessions.expiry_time"),
    },
}


def fact_assets(
    hours: HourlyPartitionsDefinition, docs_url: str | None = None
) -> list[AssetsDefinition]:
    """Return the facts, each an hourly-partitioned asset; one run computes a range of hours.

    `docs_url` is the address of the pages under docs/.
    """

    @_fact_asset(QUESTION_INTERACTION, hours, docs_url)
    def question_interaction_fact(
        answers: DataFrame, questions: DataFrame, sessions: DataFrame
    ) -> DataFrame:
        return interactions.question_interaction_fact(answers, questions, sessions)

    @_fact_asset(TEST_SUMMARY, hours, docs_url)
    def test_summary_fact(
        answers: DataFrame, questions: DataFrame, sessions: DataFrame
    ) -> DataFrame:
        return summary.test_summary_fact(answers, questions, sessions)

    @_fact_asset(TEST_FUNNEL, hours, docs_url)
    def test_funnel_fact(
        answers: DataFrame, sessions: DataFrame, submissions: DataFrame
    ) -> DataFrame:
        return funnel.test_funnel_fact(answers, sessions, submissions)

    return [question_interaction_fact, test_summary_fact, test_funnel_fact]


def _fact_asset(
    fact: Fact, hours: HourlyPartitionsDefinition, docs_url: str | None
) -> Callable[[Callable[..., DataFrame]], AssetsDefinition]:
    """Return the decorator that makes a function of the base tables the asset of a fact.

    The metadata of an input names the fact for which the IO manager loads it.
    """
    return asset(
        ins={name: AssetIn(metadata={"fact": fact.name}) for name in fact.reads},
        partitions_def=hours,
        backfill_policy=BackfillPolicy.single_run(),
        io_manager_key=IO_MANAGER_KEY,
        pool=fact.name,
        group_name=GROUP,
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
        f"{fact.meaning}.\n\nA run makes every row that its hours touch equal to a full recompute "
        "from the base tables, also after late, changed or deleted base rows."
    )


def _column_schema(fact: Fact) -> TableSchema:
    return TableSchema(
        columns=[
            *(TableColumn(name, "id", description=KEY_MEANINGS[name]) for name in fact.key),
            *(
                TableColumn(column.name, column.type.value, description=column.meaning)
                for column in fact.columns
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
