"""The facts in plain SQL over the whole base tables: a second implementation of docs/spec.md §2.

It is written from the specification alone and uses no code of the package.
"""

from __future__ import annotations

from sqlalchemy import Connection, text

from mcq_analytics_tests.tally import TALLY

LONGEST = 2600
"""Bytes of ids that a fact row can hold."""

# Ids of two tables are compared as text, because their collations may differ.
VALID = """
expiries AS (
    SELECT CAST(s.session_id AS text) AS session, bool_or(s.expiry_time IS NULL) AS never,
        max({expiry_time}) AS latest
    FROM {source}.sessions s GROUP BY s.session_id
),
valid AS (
    SELECT a.answer_id, a.student_id, a.test_id, a.question_id,
        CAST(a.submitted_option AS text) COLLATE "C" AS option, {answer_time} AS ts
    FROM {source}.answers a
    LEFT JOIN expiries e ON e.session = CAST(a.session_id AS text) COLLATE "C"
    WHERE a."timestamp" IS NOT NULL AND isfinite(a."timestamp")
        AND a.student_id IS NOT NULL AND a.test_id IS NOT NULL AND a.question_id IS NOT NULL
        AND octet_length(CAST(a.student_id AS text)) + octet_length(CAST(a.test_id AS text))
            + octet_length(CAST(a.question_id AS text)) <= {longest}
        AND (e.session IS NULL OR e.never OR {answer_time} <= e.latest)
)
"""

INTERACTIONS = (
    "WITH "
    + VALID
    + """,
final AS (
    SELECT DISTINCT ON (student_id, test_id, question_id)
        student_id, test_id, question_id, option AS final_answer_option
    FROM valid
    ORDER BY student_id, test_id, question_id, ts DESC, {answer_id} DESC NULLS FIRST,
        option DESC NULLS LAST
),
keys AS (
    SELECT CAST(question_id AS text) AS question,
        max(CAST(correct_option AS text) COLLATE "C") AS option
    FROM {source}.questions GROUP BY question_id
)
SELECT v.student_id, v.test_id, v.question_id,
    min(v.ts) AS first_answer_time,
    max(v.ts) AS last_answer_time,
    count(*) AS answer_count,
    f.final_answer_option,
    CASE WHEN k.option IS NULL THEN NULL
         WHEN f.final_answer_option IS NULL THEN false
         ELSE f.final_answer_option = k.option END AS is_correct,
    count(*) > 1 AS revisited,
    CAST(extract(epoch FROM max(v.ts) - min(v.ts)) AS double precision) AS time_spent
FROM valid v
JOIN final f USING (student_id, test_id, question_id)
LEFT JOIN keys k ON k.question = CAST(v.question_id AS text) COLLATE "C"
GROUP BY v.student_id, v.test_id, v.question_id, f.final_answer_option, k.option
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
FROM expected_question_interaction_fact i
JOIN (
    SELECT test_id, count(DISTINCT question_id) AS total_questions
    FROM expected_question_interaction_fact GROUP BY test_id
) t ON t.test_id = i.test_id
GROUP BY i.student_id, i.test_id, t.total_questions
"""

FUNNELS = (
    "WITH "
    + VALID
    + """,
handed_in AS (
    SELECT b.student_id, b.test_id, {submit_time} AS submit_time,
        CAST(b.completion_status AS text) AS completion_status
    FROM {source}.submissions b
    WHERE b.submit_time IS NOT NULL AND isfinite(b.submit_time)
        AND b.student_id IS NOT NULL AND b.test_id IS NOT NULL
        AND octet_length(CAST(b.student_id AS text)) + octet_length(CAST(b.test_id AS text))
            <= {longest}
),
timed AS (
    SELECT h.*, (
        SELECT min(v.ts) FROM valid v
        WHERE CAST(v.student_id AS text) COLLATE "C" = CAST(h.student_id AS text)
            AND CAST(v.test_id AS text) COLLATE "C" = CAST(h.test_id AS text)
            AND v.ts <= h.submit_time
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
    CAST(avg(extract(epoch FROM submit_time - began)) AS double precision) AS avg_submit_time,
    count(began) AS timed_submissions,
    coalesce(sum(extract(epoch FROM submit_time - began) * 1000000), 0) AS timed_microseconds
FROM timed GROUP BY test_id
"""
)

KEYS = {
    "question_interaction_fact": ("student_id", "test_id", "question_id"),
    "test_summary_fact": ("student_id", "test_id"),
    "test_funnel_fact": ("test_id",),
}

AVERAGES = {"test_funnel_fact": ("avg_submit_time",)}
"""Columns that are summed in another order here: they are compared to a billionth, all others
exactly."""


def recompute(connection: Connection, source: str = "public", *, zoned: bool = True) -> None:
    """Create temporary tables `expected_<fact>` from the base tables.

    `zoned` says whether the times of the base tables have a zone.
    """
    zone = "" if zoned else " AT TIME ZONE 'UTC'"
    times = {
        "answer_time": f"""least(greatest(a."timestamp"{zone}, '0001-01-01 00:00Z'),
            '9999-12-31 23:59:59.999999Z')""",
        "submit_time": f"""least(greatest(b.submit_time{zone}, '0001-01-01 00:00Z'),
            '9999-12-31 23:59:59.999999Z')""",
        # Answers and expiries beyond the year 9999 are clamped to the same moment.
        "expiry_time": f"""(CASE WHEN isfinite(s.expiry_time) THEN
            least(greatest(s.expiry_time{zone}, '0001-01-01 00:00Z'), '9999-12-31 23:59:59.999999Z')
            ELSE s.expiry_time{zone} END)""",
    }
    kind = connection.execute(
        text(
            "SELECT CAST(atttypid AS regtype) IN ('text', 'varchar') FROM pg_attribute "
            "WHERE attrelid = CAST(:answers AS regclass) AND attname = 'answer_id'"
        ),
        {"answers": f"{source}.answers"},
    ).scalar_one()
    for fact in KEYS:
        connection.execute(text(f"DROP TABLE IF EXISTS pg_temp.expected_{fact}"))
    fill = {
        "source": source,
        "longest": LONGEST,
        "answer_id": 'answer_id COLLATE "C"' if kind else "answer_id",
        **times,
    }
    for fact, query in (
        ("question_interaction_fact", INTERACTIONS),
        ("test_summary_fact", SUMMARIES),
        ("test_funnel_fact", FUNNELS),
    ):
        connection.execute(
            text(f"CREATE TEMPORARY TABLE expected_{fact} AS {query.format(**fill)}")
        )


def columns_of(connection: Connection, table: str) -> list[str]:
    """Return the columns of a table in order, without `updated_at`."""
    return list(
        connection.execute(
            text(
                "SELECT attname FROM pg_attribute WHERE attrelid = CAST(:table AS regclass) "
                "AND attnum > 0 AND NOT attisdropped AND attname <> 'updated_at' ORDER BY attnum"
            ),
            {"table": table},
        ).scalars()
    )


def differences(
    connection: Connection, source: str = "public", schema: str = "analytics", *, zoned: bool = True
) -> list[str]:
    """Return the differences between the facts and a full recompute; none if they are exact."""
    recompute(connection, source, zoned=zoned)
    found = []
    for fact, key in KEYS.items():
        columns = columns_of(connection, f"{schema}.{fact}")
        missing = set(columns) - set(columns_of(connection, f"pg_temp.expected_{fact}"))
        assert not missing, (
            f"{fact}: recompute.py does not compute {', '.join(sorted(missing))}: add it to the "
            "query of the fact, from docs/spec.md"
        )
        close = AVERAGES.get(fact, ())
        unequal = [
            f"(a.{name} IS NULL) <> (e.{name} IS NULL) OR "
            f"abs(a.{name} - e.{name}) > 1e-9 * greatest(1, abs(e.{name}))"
            if name in close
            else f"a.{name} IS DISTINCT FROM e.{name}"
            for name in columns
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
