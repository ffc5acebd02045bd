"""CHECK constraints on the facts; they replace asset checks that only reported wrong rows."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.dialects.postgresql import insert

revision = "0004"
down_revision = "0003"

_CONDITIONS = {
    "question_interaction_fact": {
        "answer_count": "answer_count > 0",
        "revisited": "revisited = (answer_count > 1)",
        "correct_option": "final_answer_option IS NOT NULL OR is_correct IS NOT TRUE",
        "answer_times": "first_answer_time <= last_answer_time",
        "time_spent": "time_spent >= 0 AND time_spent < 'infinity'",
    },
    "test_summary_fact": {
        "questions_attempted": "questions_attempted > 0 AND questions_attempted <= total_questions",
        "correct_answers": "correct_answers >= 0 AND correct_answers <= questions_attempted",
        "accuracy_percent": "accuracy_percent >= 0 AND accuracy_percent <= 100",
        "time_spent": "time_spent >= 0 AND time_spent < 'infinity'",
    },
    "test_funnel_fact": {
        "total_submissions": (
            "total_submissions > 0 AND "
            "completed_submissions + incomplete_submissions = total_submissions"
        ),
        "parts": "completed_submissions >= 0 AND incomplete_submissions >= 0",
        "completion_rate": "completion_rate >= 0 AND completion_rate <= 100",
        "avg_submit_time": "avg_submit_time >= 0 AND avg_submit_time < 'infinity'",
    },
}
_REPLACED = ("keys_are_unique", "values_are_in_range", "completed_and_incomplete_make_the_total")
_REMAINING = "rows_equal_a_recompute"


def upgrade() -> None:
    """Refuse wrong rows from now on, and leave the hours of failed old checks to the remaining one.

    The constraints are not validated here: an old wrong row must not stop the migration.
    `postgres.schema` validates them afterwards.
    """
    schema = context.config.attributes["schema"]
    for table, conditions in _CONDITIONS.items():
        for name, condition in conditions.items():
            op.create_check_constraint(
                f"{table}_{name}_check",
                table,
                sa.text(condition),
                schema=schema,
                postgresql_not_valid=True,
            )
    wrong = sa.table(
        "wrong_hour",
        *map(sa.column, ("pipeline_name", "check_name", "hour", "run_id", "found_at", "error")),
        schema=schema,
    )
    # A check that no longer runs would never clear its verdicts.
    replaced = wrong.c.check_name.in_(_REPLACED)
    moved = (
        sa.select(
            wrong.c.pipeline_name,
            sa.literal(_REMAINING),
            *(wrong.c.hour, wrong.c.run_id, wrong.c.found_at, wrong.c.error),
        )
        .where(replaced)
        .distinct(wrong.c.pipeline_name, wrong.c.hour)
    )
    names = [column.name for column in wrong.c]
    op.execute(insert(wrong).from_select(names, moved).on_conflict_do_nothing())
    op.execute(wrong.delete().where(replaced))
