"""The status of cancelled attempts, and the table of hours that a check found wrong."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context, op

revision = "0003"
down_revision = "0002"

_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Allow the status `cancelled`, and create the table of wrong hours."""
    schema = context.config.attributes["schema"]
    op.drop_constraint("etl_metadata_status_check", "etl_metadata", schema=schema)
    op.create_check_constraint(
        "etl_metadata_status_check",
        "etl_metadata",
        "status IN ('success', 'failed', 'cancelled')",
        schema=schema,
    )
    op.create_table(
        "wrong_hour",
        sa.Column("pipeline_name", sa.Text, primary_key=True),
        sa.Column("check_name", sa.Text, primary_key=True),
        sa.Column("hour", _MOMENT, primary_key=True),
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("found_at", _MOMENT, nullable=False),
        sa.Column("error", sa.Text, nullable=False),
        schema=schema,
    )
