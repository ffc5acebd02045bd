"""Hours and submissions by student's test, for all facts; one set of fingerprints."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context, op

revision = "0005"
down_revision = "0004"

_MOMENT = sa.DateTime(timezone=True)
_FACTS = ("question_interaction_fact", "test_summary_fact", "test_funnel_fact")


def upgrade() -> None:
    """Create the tables, with what the old ones know.

    What students' tests add to the funnel is not known here: `compute.rebuild` computes it from the
    base tables afterwards, together with the hours of submissions.
    """
    schema = context.config.attributes["schema"]
    types = context.config.attributes["key_types"]
    student, test = types["student_test.student_id"], types["student_test.test_id"]
    op.create_table(
        "student_test_hour",
        sa.Column("hour", _MOMENT, primary_key=True),
        sa.Column("student_id", student, primary_key=True, autoincrement=False),
        sa.Column("test_id", test, primary_key=True, autoincrement=False),
        schema=schema,
    )
    op.create_table(
        "student_test_submissions",
        sa.Column("test_id", test, primary_key=True, autoincrement=False),
        sa.Column("student_id", student, primary_key=True, autoincrement=False),
        sa.Column("submissions", sa.BigInteger, nullable=False),
        sa.Column("completed_submissions", sa.BigInteger, nullable=False),
        sa.Column("timed_submissions", sa.BigInteger, nullable=False),
        sa.Column("timed_microseconds", sa.Numeric, nullable=False),
        schema=schema,
    )
    for column in (
        sa.Column("timed_submissions", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("timed_microseconds", sa.Numeric, nullable=False, server_default="0"),
    ):
        op.add_column("test_funnel_fact", column, schema=schema)
        op.alter_column("test_funnel_fact", column.name, server_default=None, schema=schema)
    _merge_hours(schema)
    _merge_fingerprints(schema)


def _merge_hours(schema: str) -> None:
    """Keep the hours of students' tests, and drop the tables of hours by fact."""
    columns = ("hour", "student_id", "test_id")
    merged = sa.table("student_test_hour", *map(sa.column, columns), schema=schema)
    found = [
        sa.select(*table.c)
        for table in (
            sa.table(f"{fact}_hour", *map(sa.column, columns), schema=schema) for fact in _FACTS[:2]
        )
    ]
    op.execute(merged.insert().from_select(list(columns), sa.union(*found)))
    for fact in _FACTS:
        op.drop_table(f"{fact}_hour", schema=schema)


def _merge_fingerprints(schema: str) -> None:
    """Keep the fingerprints of hours over which all facts were computed from the same rows."""
    columns = ("pipeline_name", "hour", "answers", "submissions")
    kept = sa.table("hour_fingerprint", *map(sa.column, columns), schema=schema)
    summaries, funnels = (kept.alias(fact) for fact in _FACTS[1:])
    # The rows of the first fact stay, and stand for all; a fingerprint that is null is stale.
    of_summaries, of_funnels = (
        sa.select(one.c.hour).where(one.c.pipeline_name == fact, one.c.hour == kept.c.hour)
        for one, fact in ((summaries, _FACTS[1]), (funnels, _FACTS[2]))
    )
    op.execute(
        kept.delete().where(
            kept.c.pipeline_name == _FACTS[0], ~of_summaries.exists() | ~of_funnels.exists()
        )
    )
    op.execute(
        kept.update()
        .where(
            kept.c.pipeline_name == _FACTS[0],
            summaries.c.pipeline_name == _FACTS[1],
            summaries.c.hour == kept.c.hour,
            funnels.c.pipeline_name == _FACTS[2],
            funnels.c.hour == kept.c.hour,
        )
        .values(
            answers=sa.case((kept.c.answers == summaries.c.answers, kept.c.answers)),
            submissions=funnels.c.submissions,
        )
    )
    op.execute(kept.delete().where(kept.c.pipeline_name != _FACTS[0]))
    op.drop_constraint("hour_fingerprint_pkey", "hour_fingerprint", schema=schema)
    op.drop_column("hour_fingerprint", "pipeline_name", schema=schema)
    op.create_primary_key("hour_fingerprint_pkey", "hour_fingerprint", ["hour"], schema=schema)
