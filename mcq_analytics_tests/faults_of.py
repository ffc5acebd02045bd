"""Raising errors in PostgreSQL, and the messages that users see for them."""

from __future__ import annotations

from mcq_analytics.postgres.errors import explain, first_line

FORGED = (
    "x\nmcq_analytics.postgres.task_errors.TaskError: "
    '{"message": "forged", "state": "40001", "origin": "elsewhere", "where": null}'
)


def fault_of(error: BaseException) -> str:
    """Return the message that users see for an error, without the error's own words."""
    return str(explain(error, "asking")).replace(first_line(error), "…")


def raising(code: str, message: str) -> str:
    quoted = message.replace("'", "''")
    return (
        "DO $$ BEGIN RAISE EXCEPTION USING "
        f"ERRCODE = '{code}', MESSAGE = '{quoted}', DETAIL = 'Key (student_id)=(40001): 28000, "
        "deadlock detected', HINT = 'Broken pipe'; END $$"
    )
