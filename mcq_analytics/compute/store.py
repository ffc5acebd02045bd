"""The write transaction of an attempt: calls `merge`, stores fingerprints, completes the report.

All of it is done in the caller's transaction, which also records the attempt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlalchemy import Connection, text

from mcq_analytics.compute.fingerprints import Fingerprints, store_fingerprints, watermark
from mcq_analytics.compute.merge import Merge, Staged
from mcq_analytics.compute.overviews import overviews
from mcq_analytics.compute.report import AttemptReport
from mcq_analytics.compute.staging import TOUCHED, Staging
from mcq_analytics.model.facts import TEST_FUNNEL
from mcq_analytics.model.windows import Window
from mcq_analytics.postgres.fact_tables import FactTables
from mcq_analytics.postgres.identifiers import quoted
from mcq_analytics.spark.parts import PARTS


def store_result(
    connection: Connection,
    window: Window,
    *,
    schema: str,
    tables: FactTables,
    staging: Staging,
    tasks: Sequence[int],
    fingerprints: Callable[[], Fingerprints],
    report: AttemptReport,
    is_large: bool,
) -> None:
    """Make the staged rows those of the touched students' tests, and complete the report.

    `tasks` are the task attempts whose rows count. `fingerprints` waits for those of the window,
    which may be taken meanwhile. `is_large` says that much of all is touched:
    what spans students is then summed up anew, as it is over hours that a check found wrong.
    """
    staged = Staged(staging.quoted(TOUCHED), {part: staging.quoted(part) for part in PARTS}, tasks)
    connection.exec_driver_sql(f"ANALYZE {', '.join(staged.parts.values())}")
    merge = Merge(
        connection,
        tables,
        staged,
        window,
        repairing=_was_found_wrong(connection, schema, window),
        is_large=is_large,
    )
    report.counts = merge.run()
    report.overviews, report.fact_rows = overviews(
        connection, staged, quoted(schema, TEST_FUNNEL.name)
    )
    store_fingerprints(connection, schema, fingerprints())
    report.watermark = watermark(connection, schema)


def _was_found_wrong(connection: Connection, schema: str, window: Window) -> bool:
    statement = (
        f"SELECT EXISTS (SELECT 1 FROM {quoted(schema, 'wrong_hour')} "
        "WHERE hour >= :start AND hour < :end)"
    )
    bound = {"start": window.start, "end": window.end}
    return bool(connection.execute(text(statement), bound).scalar_one())
