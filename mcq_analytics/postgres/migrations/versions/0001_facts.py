"""The three facts, the hours of their rows, and the attempts that computed them."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import context, op

revision = "0001"
down_revision = None

_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Create all tables; key columns take the types of the base tables."""
    schema = context.config.attributes["schema"]
    types = context.config.attributes["key_types"]
    student, test, question = types["student_id"], types["test_id"], types["question_id"]
    funnel_test = types.get("submissions.test_id", test)
    _fact(
        "question_interaction_fact",
        schema,
        {"student_id": student, "test_id": test, "question_id": question},
        sa.Column("first_answer_time", _MOMENT, nullable=False),
        sa.Column("last_answer_time", _MOMENT, nullable=False),
        sa.Column("answer_count", sa.BigInteger, nullable=False),
        sa.Column("final_answer_option", sa.Text),
        sa.Column("is_correct", sa.Boolean),
        sa.Column("revisited", sa.Boolean, nullable=False),
        sa.Column("time_spent", sa.Float(53), nullable=False),
    )
    _index("question_interaction_fact", "test_id_idx", schema, ["test_id", "question_id"])
    _fact(
        "test_summary_fact",
        schema,
        {"student_id": student, "test_id": test},
        sa.Column("total_questions", sa.BigInteger, nullable=False),
        sa.Column("questions_attempted", sa.BigInteger, nullable=False),
        sa.Column("correct_answers", sa.BigInteger, nullable=False),
        sa.Column("accuracy_percent", sa.Float(53), nullable=False),
        sa.Column("time_spent", sa.Float(53), nullable=False),
    )
    _index("test_summary_fact", "test_id_idx", schema, ["test_id", "total_questions"])
    _fact(
        "test_funnel_fact",
        schema,
        {"test_id": funnel_test},
        sa.Column("total_submissions", sa.BigInteger, nullable=False),
        sa.Column("completed_submissions", sa.BigInteger, nullable=False),
        sa.Column("incomplete_submissions", sa.BigInteger, nullable=False),
        sa.Column("completion_rate", sa.Float(53), nullable=False),
        sa.Column("avg_submit_time", sa.Float(53)),
    )
    op.create_table(
        "etl_metadata",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("pipeline_name", sa.Text, nullable=False),
        sa.Column("window_start", _MOMENT, nullable=False),
        sa.Column("window_end", _MOMENT, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("rows_read", sa.BigInteger),
        sa.Column("rows_written", sa.BigInteger),
        sa.Column("started_at", _MOMENT, nullable=False),
        sa.Column("finished_at", _MOMENT, nullable=False),
        sa.Column("run_id", sa.Text),
        sa.Column("error", sa.Text),
        sa.CheckConstraint("status IN ('success', 'failed')", name="etl_metadata_status_check"),
        sa.CheckConstraint("window_start < window_end", name="etl_metadata_window_check"),
        schema=schema,
    )
    _index("etl_metadata", "pipeline_idx", schema, ["pipeline_name", "finished_at"])
    op.create_table(
        "running_attempt",
        sa.Column("pipeline_name", sa.Text, primary_key=True),
        sa.Column("window_start", _MOMENT, nullable=False),
        sa.Column("window_end", _MOMENT, nullable=False),
        sa.Column("started_at", _MOMENT, nullable=False),
        sa.Column("run_id", sa.Text),
        schema=schema,
    )


def _fact(
    name: str,
    schema: str,
    keys: dict[str, sa.types.TypeEngine[Any]],
    *columns: sa.Column[Any],
) -> None:
    """Create a fact, its index for syncing, and the table of its rows' hours."""
    op.create_table(
        name,
        *_key_columns(keys),
        *columns,
        sa.Column("updated_at", _MOMENT, nullable=False, server_default=sa.func.now()),
        schema=schema,
    )
    _index(name, "updated_at_idx", schema, ["updated_at"])
    op.create_table(
        f"{name}_hour",
        sa.Column("hour", _MOMENT, primary_key=True),
        *_key_columns(keys),
        schema=schema,
    )


def _key_columns(keys: dict[str, sa.types.TypeEngine[Any]]) -> list[sa.Column[Any]]:
    return [
        sa.Column(column, type_, primary_key=True, autoincrement=False)
        for column, type_ in keys.items()
    ]


def _index(table: str, suffix: str, schema: str, columns: list[str]) -> None:
    op.create_index(f"{table}_{suffix}", table, columns, schema=schema)
