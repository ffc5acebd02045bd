"""The definitions of docs/spec.md §2 in Spark: pure functions of DataFrames, one module per fact.

No Dagster and no database here. The functions are correct on whole base tables, and on all rows of
some keys of the fact. Inputs have the columns of docs/spec.md §1, times as UTC timestamps, options
as strings, ids as integer, bigint or string. Rows without an id or a time must have been left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pyspark.sql import DataFrame

from mcq_analytics.model.facts import QUESTION_INTERACTION, TEST_FUNNEL, TEST_SUMMARY
from mcq_analytics.transforms.funnel import test_funnel_fact
from mcq_analytics.transforms.interactions import question_interaction_fact
from mcq_analytics.transforms.summary import test_summary_fact

TRANSFORMS: Mapping[str, Callable[..., DataFrame]] = {
    QUESTION_INTERACTION.name: question_interaction_fact,
    TEST_SUMMARY.name: test_summary_fact,
    TEST_FUNNEL.name: test_funnel_fact,
}
"""The function that computes each fact, by its name; its arguments are named like base tables."""
