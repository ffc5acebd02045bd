"""The facts by plain SQL over the whole base tables: a second telling of SPEC section 2.

Written from the specification alone; nothing of the package computes here.
"""

from __future__ import annotations

from sqlalchemy import Connection, text

from mcq_analytics_tests.tally import TALLY

VALID = """
valid AS (
    SELECT a.answer_id, a.student_id, a.test_id, a.question_id, a.submitted_option,
        {answer_time} AS ts
    FROM {source}.answers a
    WHERE a."timestamp" IS NOT NULL AND isfinite(a."timestamp")
        AND a.student_id IS NOT NULL AND a.test_id IS NOT NULL AND a.question_id IS NOT NULL
        AND NOT EXISTS (
            SELECT 1 FROM {source}.sessions s
            WHERE s.session_id = a.session_id AND {answer_time} > {expiry_time}
        )
)
"""

INTERACTIONS = (
    "WITH "
    + VALID
    + """,
final AS (
    SELECT DISTINCT ON (student_id, test_id, question_id)
        student_id, test_id, question_id, submitted_option AS final_answer_option
    FROM valid
    ORDER BY student_id, test_id, question_id, ts DESC, answer_id DESC
)
SELECT v.student_id, v.test_id, v.question_id,
    min(v.ts) AS first_answer_time,
    max(v.ts) AS last_answer_time,
    count(*) AS answer_count,
    CAST(f.final_answer_option AS text) AS final_answer_option,
    CASE WHEN q.correct_option IS NULL THEN NULL
         WHEN f.final_answer_option IS NULL THEN false
         ELSE f.final_answer_option = q.correct_option END AS is_correct,
    count(*) > 1 AS revisited,
    CAST(extract(epoch FROM max(v.ts) - min(v.ts)) AS double precision) AS time_spent
FROM valid v
JOIN final f USING (student_id, test_id, question_id)
LEFT JOIN {source}.questions q ON q.question_id = v.question_id
GROUP BY v.student_id, v.test_id, v.question_id, f.final_answer_option, q.correct_option
"""
)

SUMMARIES = """
SELECT i.student_id, i.test_id, t.total_questions,
    count(*) AS questions_attempted,
    count(*) FILTER (WHERE i.is_correct) AS correct_answers,
    CAST(100 AS double precision) * count(*) FILTER (WHERE i.is_correct) / count(*)
        AS accuracy_percent,
    CAST(extract(epoch FROM max(i.last_answer_time) - min(i.first_answer_time))
        AS double precision) AS time_spent
FROM interactions i
JOIN (
    SELECT test_id, count(DISTINCT question_id) AS total_questions
    FROM interactions GROUP BY test_id
) t ON t.test_id = i.test_id
GROUP BY i.student_id, i.test_id, t.total_questions
"""

FUNNELS = (
    "WITH "
    + VALID
    + """,
handed_in AS (
    SELECT b.student_id, b.test_id, {submit_time} AS submit_time, b.completion_status
    FROM {source}.submissions b
    WHERE b.submit_time IS NOT NULL AND isfinite(b.submit_time)
        AND b.student_id IS NOT NULL AND b.test_id IS NOT NULL
),
attempts AS (
    SELECT h.*, (
        SELECT min(v.ts) FROM valid v
        WHERE v.student_id = h.student_id AND v.test_id = h.test_id AND v.ts <= h.submit_time
            AND v.ts > coalesce((
                SELECT max(p.submit_time) FROM handed_in p
                WHERE p.student_id = h.student_id AND p.test_id = h.test_id
                    AND p.submit_time < h.submit_time
            ), '-infinity')
    ) AS began
    FROM handed_in h
)
SELECT test_id,
    count(*) AS total_submissions,
    count(*) FILTER (WHERE lower(completion_status) = 'completed') AS completed_submissions,
    count(*) - count(*) FILTER (WHERE lower(completion_status) = 'completed')
        AS incomplete_submissions,
    CAST(100 AS double precision) * count(*) FILTER (WHERE lower(completion_status) = 'completed')
        / count(*) AS completion_rate,
    CAST(avg(extract(epoch FROM submit_time - began)) AS double precision) AS avg_submit_time
FROM attempts GROUP BY test_id
"""
)

KEYS = {
    "question_interaction_fact": ("student_id", "test_id", "question_id"),
    "test_summary_fact": ("student_id", "test_id"),
    "test_funnel_fact": ("test_id",),
}

# Doubles are compared to a billionth: an average is summed in another order here.
EXACT = {
    "question_interaction_fact": (
        "first_answer_time",
        "last_answer_time",
        "answer_count",
        "final_answer_option",
        "is_correct",
        "revisited",
        "time_spent",
    ),
    "test_summary_fact": (
        "total_questions",
        "questions_attempted",
        "correct_answers",
        "accuracy_percent",
        "time_spent",
    ),
    "test_funnel_fact": (
        "total_submissions",
        "completed_submissions",
        "incomplete_submissions",
        "completion_rate",
    ),
}
CLOSE = {"test_funnel_fact": ("avg_submit_time",)}


def recompute(connection: Connection, source: str = "public", *, zoned: bool = True) -> None:
    """Make temporary tables `expected_<fact>` from the base tables. `zoned`: times have a zone."""
    times = {
        "answer_time": 'a."timestamp"',
        "expiry_time": "s.expiry_time",
        "submit_time": "b.submit_time",
    }
    if not zoned:
        times = {name: f"({column} AT TIME ZONE 'UTC')" for name, column in times.items()}
    for name in ("interactions", *(f"expected_{fact}" for fact in KEYS)):
        connection.execute(text(f"DROP TABLE IF EXISTS pg_temp.{name}"))
    fill = {"source": source, **times}
    connection.execute(
        text(f"CREATE TEMPORARY TABLE interactions AS {INTERACTIONS.format(**fill)}")
    )
    connection.execute(
        text("CREATE TEMPORARY TABLE expected_question_interaction_fact AS TABLE interactions")
    )
    connection.execute(text(f"CREATE TEMPORARY TABLE expected_test_summary_fact AS {SUMMARIES}"))
    connection.execute(
        text(f"CREATE TEMPORARY TABLE expected_test_funnel_fact AS {FUNNELS.format(**fill)}")
    )


def differences(
    connection: Connection, source: str = "public", schema: str = "analytics", *, zoned: bool = True
) -> list[str]:
    """Return how the facts differ from a full recompute: nothing, when they are exact."""
    recompute(connection, source, zoned=zoned)
    found = []
    for fact, key in KEYS.items():
        close = CLOSE.get(fact, ())
        unequal = [f"a.{name} IS DISTINCT FROM e.{name}" for name in EXACT[fact]] + [
            f"(a.{name} IS NULL) <> (e.{name} IS NULL) OR "
            f"abs(a.{name} - e.{name}) > 1e-9 * greatest(1, abs(e.{name}))"
            for name in close
        ]
        matches = " AND ".join(f"a.{name} = e.{name}" for name in key)
        rows = connection.execute(
            text(
                f"SELECT to_jsonb(a) AS actual, to_jsonb(e) AS expected "
                f"FROM {schema}.{fact} a FULL JOIN expected_{fact} e ON {matches} "
                f"WHERE a.{key[0]} IS NULL OR e.{key[0]} IS NULL OR {' OR '.join(unequal)}"
            )
        )
        found += [f"{fact}: has {row.actual}, should have {row.expected}" for row in rows]
        TALLY["rows compared"] += connection.execute(
            text(f"SELECT count(*) FROM {schema}.{fact} a FULL JOIN expected_{fact} e ON {matches}")
        ).scalar_one()
    return found
