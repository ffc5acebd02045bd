"""How students submitted, in plain SQL: what a student's test adds to `test_funnel_fact`.

`transforms.sittings` has the same rules in Spark, for runs. Audits compare with this, and `rebuild`
computes it where no run has. The fields of the templates are in `templates`.
"""

from __future__ import annotations

from mcq_analytics.compute.judged_answers import judged

# An answer belongs to the next submission. Instead of a join, both are ordered and numbered.
_HANDED_IN = """
    moments AS (
        SELECT student_id, test_id, submit_time, count(*) AS submissions,
            count(*) FILTER (WHERE lower(completion_status) = 'completed') AS completed
        FROM (
            SELECT {{submission_columns}} FROM {keys} k {{submissions_of_key}}
            WHERE {{submission_has_keys}}
        ) b
        GROUP BY student_id, test_id, submit_time
    ), {judged}, events AS (
        SELECT student_id, test_id, submit_time AS moment, true AS is_submission,
            submissions, completed
        FROM moments
        UNION ALL SELECT student_id, test_id, "timestamp", false, 0, 0 FROM judged WHERE is_valid
    ), numbered AS (
        SELECT *, count(*) FILTER (WHERE is_submission) OVER (
            PARTITION BY student_id, test_id ORDER BY moment, is_submission
            ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS number
        FROM events
    ), timed AS (
        SELECT student_id, test_id, sum(submissions) AS submissions, sum(completed) AS completed,
            extract(epoch FROM max(moment) - min(moment) FILTER (WHERE NOT is_submission))
                * 1000000 AS microseconds
        FROM numbered GROUP BY student_id, test_id, number HAVING bool_or(is_submission)
    ), handed_in AS (
        SELECT student_id, test_id, CAST(sum(submissions) AS bigint) AS submissions,
            CAST(sum(completed) AS bigint) AS completed_submissions,
            CAST(coalesce(sum(submissions) FILTER (WHERE microseconds IS NOT NULL), 0) AS bigint)
                AS timed_submissions,
            round(coalesce(sum(microseconds * submissions), 0)) AS timed_microseconds
        FROM timed GROUP BY student_id, test_id
    )
"""

_ANSWERS = """
    SELECT {{answer_columns}} FROM {keys} k {{answers_of_key}} WHERE {{answer_has_keys}}
"""


def handed_in(keys: str) -> str:
    """Return a template of common table expressions, the last of which is `handed_in`.

    `keys` is a table of students' tests. `handed_in` has a row for each of them with a submission,
    with the columns of `student_test_submissions`; `judged` has their answers.
    """
    answers = judged(_ANSWERS.format(keys=keys))
    return (
        _HANDED_IN.replace("{judged}", "{{judged}}").format(keys=keys).replace("{judged}", answers)
    )
