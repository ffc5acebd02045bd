"""Which answers are valid and which are correct, as SQL templates (docs/spec.md §2).

`transforms.valid_answers` has the same rules in Spark. The fields of the templates are in
`templates`.
"""

from __future__ import annotations

# The expiry of each session and the key of each question are computed once, for the chosen answers
# only. They are joined by full joins because PostgreSQL cannot run those as nested loops, which
# would take hours if the planner expected one row and there were many. The WHERE clause drops the
# rows that only a full join returns. With a plain `WHERE c.is_chosen` the planner would turn the
# full joins into left joins, hence the CASE. Conditions of outer queries would do the same, hence
# `OFFSET 0`, which keeps them out.
_JUDGED = """
    chosen AS (SELECT r.*, true AS is_chosen FROM ({chosen}) r),
    expiries AS ({{{expiries}}}),
    answer_keys AS ({{{answer_keys}}}),
    judged AS (
        SELECT c.*, (c."timestamp" <= e.expiry_time) IS NOT FALSE AS is_valid, k.correct_option
        FROM chosen c
        FULL JOIN expiries e ON e.session_id = c.session_id
        FULL JOIN answer_keys k ON k.question_id = c.question_id
        WHERE CASE WHEN c.is_chosen THEN 1 END IS NOT NULL
        OFFSET 0
    )
"""

# By whether an index leads to the rows of an id (`BaseTables.probes`): if one does, it is used, and
# the table is never scanned for the few ids of an hour; without one, a probe would be a scan.
EXPIRIES = {
    True: """
        SELECT k.session_id, e.expiry_time FROM (SELECT DISTINCT session_id FROM chosen) k
        CROSS JOIN LATERAL (
            SELECT {session_expiry} AS expiry_time FROM {sessions} s WHERE {session_matches}
            HAVING count(*) > 0
        ) e
    """,
    False: """
        SELECT s.session_id, {session_expiry} AS expiry_time
        FROM (SELECT DISTINCT session_id FROM chosen) k JOIN {sessions} s ON {session_matches}
        GROUP BY s.session_id
    """,
}

ANSWER_KEYS = {
    True: """
        SELECT k.question_id, o.correct_option
        FROM (SELECT DISTINCT question_id FROM chosen) k
        CROSS JOIN LATERAL (
            SELECT {answer_key} AS correct_option FROM {questions} q WHERE {question_matches}
            HAVING count(*) > 0
        ) o
    """,
    False: """
        SELECT q.question_id, {answer_key} AS correct_option
        FROM (SELECT DISTINCT question_id FROM chosen) k
        JOIN {questions} q ON {question_matches}
        GROUP BY q.question_id
    """,
}

# Of all rows: where most answers are chosen, finding out whose they are costs more.
ALL_EXPIRIES = """
    SELECT s.session_id, {session_expiry} AS expiry_time FROM {sessions} s GROUP BY s.session_id
"""
ALL_ANSWER_KEYS = """
    SELECT q.question_id, {answer_key} AS correct_option FROM {questions} q GROUP BY q.question_id
"""

SESSION_EXPIRY = "CASE WHEN count(*) = count({expiry_time}) THEN max({expiry_time}) END"
"""The expiry over the rows of a session: the latest, or null (never) if one of them is null."""

ANSWER_KEY = 'max(CAST(q.correct_option AS text) COLLATE "C")'
"""The answer key over the rows of a question: the greatest option by its bytes."""


def judged(chosen: str, *, are_most: bool = False) -> str:
    """Return a template of common table expressions, the last of which is `judged`.

    `chosen` is a query for answers with the columns of the field `answer_columns`; `are_most` says
    that it chooses a large part of all. `judged` has these columns, `is_valid`, and
    `correct_option`, which is null if the question has no key.
    """
    fields = ("all_expiries", "all_answer_keys") if are_most else ("expiries", "answer_keys")
    return _JUDGED.format(chosen=chosen, expiries=fields[0], answer_keys=fields[1])


def is_correct(option: str, correct_option: str) -> str:
    """Return the expression for a correct option: null without a key; a null option is wrong."""
    right = f"coalesce({option} = {correct_option}, false)"
    return f"CASE WHEN {correct_option} IS NOT NULL THEN {right} END"


def outcomes(source: str = "judged") -> str:
    """Return a query over the valid answers in `source`: one row per student, test and question.

    `source` is `judged`, perhaps joined to tables that narrow it down. Columns: the key,
    `first_answer_time`, `last_answer_time`, `answer_count`, `final_answer_option` and `is_correct`,
    as in `transforms.valid_answers.question_outcomes`.
    """
    return f"""
    SELECT student_id, test_id, question_id, first_answer_time, last_answer_time, answer_count,
        final_answer_option, {is_correct("final_answer_option", "correct_option")} AS is_correct
    FROM (
        SELECT student_id, test_id, question_id,
            min("timestamp") AS first_answer_time, max("timestamp") AS last_answer_time,
            count(*) AS answer_count,
            (array_agg(submitted_option
                ORDER BY "timestamp" DESC, answer_id DESC, submitted_option DESC NULLS LAST))[1]
                AS final_answer_option,
            max(correct_option) AS correct_option
        FROM {source} WHERE is_valid
        GROUP BY student_id, test_id, question_id
    ) latest
    """
