"""Base tables in the shapes that owners have them in: statements that reshape those we make."""

from __future__ import annotations

from collections.abc import Mapping

PARTITIONED = (
    "ALTER TABLE answers RENAME TO all_answers",
    'CREATE TABLE answers (LIKE all_answers) PARTITION BY RANGE ("timestamp")',
    "CREATE TABLE early_answers PARTITION OF answers FOR VALUES FROM (MINVALUE) TO ('2024-01-02Z')",
    "CREATE TABLE late_answers PARTITION OF answers DEFAULT PARTITION BY HASH (student_id)",
    "CREATE TABLE late_0 PARTITION OF late_answers FOR VALUES WITH (MODULUS 2, REMAINDER 0)",
    "CREATE TABLE late_1 PARTITION OF late_answers FOR VALUES WITH (MODULUS 2, REMAINDER 1)",
    "INSERT INTO answers TABLE all_answers",
    "DROP TABLE all_answers",
    'CREATE INDEX ON answers ("timestamp")',
    "ALTER TABLE submissions RENAME TO all_submissions",
    "CREATE TABLE submissions (LIKE all_submissions) PARTITION BY HASH (test_id)",
    "CREATE TABLE of_0 PARTITION OF submissions FOR VALUES WITH (MODULUS 2, REMAINDER 0)",
    "CREATE TABLE of_1 PARTITION OF submissions FOR VALUES WITH (MODULUS 2, REMAINDER 1)",
    "INSERT INTO submissions TABLE all_submissions",
    "DROP TABLE all_submissions",
    "CREATE INDEX ON submissions (test_id, student_id)",
)

VIEWS = (
    "CREATE SCHEMA logs",
    *(
        f"ALTER TABLE {name} SET SCHEMA logs"
        for name in ("answers", "questions", "sessions", "submissions")
    ),
    "ALTER TABLE logs.answers RENAME student_id TO pupil",
    "ALTER TABLE logs.answers RENAME test_id TO exam",
    'ALTER TABLE logs.answers RENAME "timestamp" TO given_at',
    "ALTER TABLE logs.submissions RENAME student_id TO pupil",
    "ALTER TABLE logs.sessions RENAME session_id TO id",
    (
        "CREATE VIEW answers AS SELECT answer_id, pupil AS student_id, question_id, "
        'exam AS test_id, session_id, submitted_option, given_at AS "timestamp" FROM logs.answers'
    ),
    "CREATE VIEW questions AS TABLE logs.questions",
    "CREATE VIEW sessions AS SELECT id AS session_id, expiry_time FROM logs.sessions",
    (
        "CREATE VIEW submissions AS SELECT pupil AS student_id, test_id, submit_time, "
        "completion_status FROM logs.submissions"
    ),
)

_ALL_INDEXES = """
    DO $$ DECLARE found record; BEGIN
        FOR found IN SELECT conrelid, conname FROM pg_constraint
            WHERE contype = 'p' AND connamespace = 'public'::regnamespace
        LOOP
            EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', found.conrelid::regclass,
                found.conname);
        END LOOP;
        FOR found IN SELECT indexrelid FROM pg_index JOIN pg_class c ON c.oid = indexrelid
            WHERE c.relnamespace = 'public'::regnamespace
        LOOP
            EXECUTE format('DROP INDEX %s', found.indexrelid::regclass);
        END LOOP;
    END $$
"""
WITHOUT_INDEXES = (_ALL_INDEXES.replace(":", r"\:"),)

SHAPES: Mapping[str, tuple[str, ...]] = {
    "views over renamed columns": VIEWS,
    "partitions": (*PARTITIONED, "CREATE INDEX ON answers (student_id, test_id, question_id)"),
    "partitions without an index": PARTITIONED,
    "no index": WITHOUT_INDEXES,
    "an index by test alone": (
        *WITHOUT_INDEXES,
        "CREATE INDEX ON answers (test_id, question_id)",
        "CREATE INDEX ON submissions (test_id)",
    ),
    "answers alone without an index": ("DROP INDEX answers_student_id_test_id_idx",),
}
