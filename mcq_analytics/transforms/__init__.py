"""The definitions of SPEC section 2 in Spark: pure functions of DataFrames, one module a fact.

Neither Dagster nor a database is known here. The functions are right on whole base tables and on
those rows of them that belong to some keys of a fact. Inputs have the columns of SPEC section 1,
times as UTC timestamps, options as strings, ids as integer, bigint or string. Rows without their
ids or their time are not among them: readers leave those out and count them.
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
"""By fact: what computes it from the base tables that it reads, given by their names."""
