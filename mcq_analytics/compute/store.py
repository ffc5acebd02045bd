"""The write transaction of an attempt: calls `merge`, stores fingerprints, completes the report.

All of it is done in the caller's transaction, which also records the attempt.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from mcq_analytics.compute.fingerprints import Fingerprints, store_fingerprints, watermark
from mcq_analytics.compute.merge import merge
from mcq_analytics.compute.overviews import overview
from mcq_analytics.compute.report import AttemptReport
from mcq_analytics.compute.selections import TEST_QUESTIONS
from mcq_analytics.compute.staging import ROWS, TOUCHED, Staging
from mcq_analytics.model.facts import TEST_SUMMARY, Fact
from mcq_analytics.model.windows import Window
from mcq_analytics.postgres.fact_tables import FactTables
from mcq_analytics.postgres.identifiers import quoted


def store_result(
    connection: Connection,
    fact: Fact,
    window: Window,
    *,
    schema: str,
    tables: FactTables,
    staging: Staging,
    tasks: Sequence[int],
    fingerprints: Fingerprints,
    report: AttemptReport,
) -> None:
    """Make the staged rows the touched rows of the fact, and complete the report.

    `tasks` are the task attempts whose rows count.
    """
    connection.exec_driver_sql(f"ANALYZE {staging.quoted(ROWS)}")
    report.rows_read = staging.rows_read(connection)
    report.fact_rows = staging.rows_computed(connection, tasks)
    report.counts = merge(
        connection,
        fact,
        fact_table=tables.facts[fact.name],
        hours_table=tables.hours[fact.name],
        staged=staging.quoted(ROWS),
        touched=staging.quoted(TOUCHED),
        test_questions=staging.quoted(TEST_QUESTIONS) if fact == TEST_SUMMARY else None,
        tasks=tasks,
        window=window,
    )
    store_fingerprints(connection, schema, fact, fingerprints)
    report.watermark = watermark(connection, schema, fact)
    report.overview = overview(connection, fact, quoted(schema, fact.name), staging.quoted(TOUCHED))
