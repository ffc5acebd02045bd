"""Fingerprints: row count and hash sum, per hour, of the base rows a fact was computed from."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context, op

revision = "0002"
down_revision = "0001"

_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Create the table of fingerprints. Done hours get an empty one, so they are computed again."""
    schema = context.config.attributes["schema"]
    fingerprints = op.create_table(
        "hour_fingerprint",
        sa.Column("pipeline_name", sa.Text, primary_key=True),
        sa.Column("hour", _MOMENT, primary_key=True),
        sa.Column("answers", sa.Text),
        sa.Column("submissions", sa.Text),
        schema=schema,
    )
    attempts = sa.table(
        "etl_metadata",
        sa.column("pipeline_name", sa.Text),
        sa.column("window_start", _MOMENT),
        sa.column("window_end", _MOMENT),
        sa.column("status", sa.Text),
        schema=schema,
    )
    hour = sa.text("interval '1 hour'")
    done = sa.select(
        attempts.c.pipeline_name,
        sa.func.generate_series(attempts.c.window_start, attempts.c.window_end - hour, hour),
    ).where(attempts.c.status == "success")
    op.execute(fingerprints.insert().from_select(["pipeline_name", "hour"], done.distinct()))
