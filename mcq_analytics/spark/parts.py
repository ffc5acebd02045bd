"""The result of a run, one row per student's test, as the rows of four staging tables.

`transforms.student_tests` computes it. The driver and Spark's Python workers both split it up here,
in Arrow, and send the rows by binary COPY.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from mcq_analytics.model.facts import STUDENT_TEST, SUBMISSION_COUNTS

if TYPE_CHECKING:
    from adbc_driver_manager.dbapi import Cursor

TASK = "task_attempt_id"
"""Column of a staging table: the Spark task attempt that wrote the row. Rows of task attempts that
Spark discarded (failed and retried, or speculative copies) stay in the table and do not count."""

INTERACTIONS, SUMMARIES, SUBMISSIONS, HOURS = "interactions", "summaries", "submissions", "hours"
PARTS = (INTERACTIONS, SUMMARIES, SUBMISSIONS, HOURS)
"""The staging tables of computed rows: those of two facts, what adds to the third, and hours."""

OWN_RESULTS = ("questions_attempted", "correct_answers", "accuracy_percent", "time_spent")
"""The columns of `test_summary_fact` that follow from the student's own answers."""


def parts_of(batch: pa.RecordBatch) -> dict[str, pa.RecordBatch]:
    """Return the rows of each part in a batch with the columns of `student_tests`."""
    counts = [column.name for column in SUBMISSION_COUNTS]
    answered = batch.filter(pc.is_valid(batch["questions_attempted"]))
    submitted = batch.filter(pc.is_valid(batch["submissions"]))
    return {
        INTERACTIONS: _with_keys(answered, "interactions"),
        SUMMARIES: answered.select([*STUDENT_TEST, *OWN_RESULTS]),
        SUBMISSIONS: submitted.select([*STUDENT_TEST, *counts]),
        HOURS: _with_keys(batch, "active_hours"),
    }


def copy_parts(
    cursor: Cursor, batch: pa.RecordBatch, schema: str, tables: Mapping[str, str], task: int
) -> None:
    """Copy a batch into the staging tables, each named by part, as the rows of a task attempt."""
    for part, rows in parts_of(batch).items():
        if rows.num_rows:
            numbers = pa.array([task] * rows.num_rows, pa.int64())
            cursor.adbc_ingest(
                tables[part],
                rows.append_column(TASK, numbers),
                mode="append",
                db_schema_name=schema,
            )


def _with_keys(batch: pa.RecordBatch, column: str) -> pa.RecordBatch:
    """Return a row per element of a list column: the student's test, and the element's fields."""
    owners = pc.list_parent_indices(batch[column])
    elements = pc.list_flatten(batch[column])
    keys = {name: batch[name].take(owners) for name in STUDENT_TEST}
    if pa.types.is_struct(elements.type):
        fields = {
            elements.type.field(index).name: array for index, array in enumerate(elements.flatten())
        }
    else:
        fields = {"hour": elements}
    return pa.RecordBatch.from_pydict({**keys, **fields})
