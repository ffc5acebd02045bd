"""Which answers count, and what is right, in SQL: the one place that holds these rules of SPEC.

In Spark they are in `transforms.valid_answers`. What has the rules filled in is `selections`.
"""

from __future__ import annotations

# Expiries and answer keys are looked up for the chosen rows alone, each once. They are brought to
# the rows by full joins, which are never nested loops: where the planner takes many rows for one,
# it would compare each with all expiries otherwise. Nothing but the chosen rows comes of them, and
# `OFFSET 0` keeps conditions out that would make other joins of them.
_JUDGED = """
    chosen AS (SELECT r.*, true AS is_chosen FROM ({chosen}) r),
    expiries AS (
        SELECT s.session_id, {session_expiry} AS expiry_time
        FROM (SELECT DISTINCT session_id FROM chosen) c
        JOIN {sessions} s ON s.session_id = c.session_id
        GROUP BY s.session_id
    ),
    answer_keys AS (
        SELECT q.question_id, {answer_key} AS correct_option
        FROM (SELECT DISTINCT question_id FROM chosen) c
        JOIN {questions} q ON q.question_id = c.question_id
        GROUP BY q.question_id
    ),
    judged AS (
        SELECT c.*, (c."timestamp" <= e.expiry_time) IS NOT FALSE AS is_valid, k.correct_option
        FROM chosen c
        FULL JOIN expiries e ON e.session_id = c.session_id
        FULL JOIN answer_keys k ON k.question_id = c.question_id
        WHERE CASE WHEN c.is_chosen THEN 1 END IS NOT NULL
        OFFSET 0
    )
"""

SESSION_EXPIRY = "CASE WHEN count(*) = count({expiry_time}) THEN max({expiry_time}) END"
"""Of the rows of a session: the latest expiry, and null, which is never, if one of them is null."""

ANSWER_KEY = 'max(CAST(q.correct_option AS text) COLLATE "C")'
"""Of the rows of a question: the greatest of its options by its bytes."""


def judged(chosen: str) -> str:
    """Return a template of common table expressions that end in `judged`.

    `chosen` selects answers with the columns that the field `answer_columns` stands for. `judged`
    has these, `is_valid`, and `correct_option`, which is null where the question has no key.
    """
    return _JUDGED.replace("{chosen}", chosen)


def is_correct(option: str, correct_option: str) -> str:
    """Return whether an option is right: null without a key; a null option is wrong."""
    right = f"coalesce({option} = {correct_option}, false)"
    return f"CASE WHEN {correct_option} IS NOT NULL THEN {right} END"


def outcomes(source: str = "judged") -> str:
    """Return a query of the valid answers in `source`: one row per student, test and question.

    `source` is `judged`, joined to what narrows it down. Columns: the key, `first_answer_time`,
    `last_answer_time`, `answer_count`, `final_answer_option` and `correct_option`.
    """
    return f"""
    SELECT student_id, test_id, question_id,
        min("timestamp") AS first_answer_time, max("timestamp") AS last_answer_time,
        count(*) AS answer_count,
        (array_agg(submitted_option
            ORDER BY "timestamp" DESC, answer_id DESC, submitted_option DESC NULLS LAST))[1]
            AS final_answer_option,
        max(correct_option) AS correct_option
    FROM {source} WHERE is_valid
    GROUP BY student_id, test_id, question_id
    """
