"""An option may be of any type, in every statement."""

from __future__ import annotations

import pytest
from pyspark.sql import SparkSession

from mcq_analytics.compute.fingerprints import stale_hours
from mcq_analytics.model.facts import QUESTION_INTERACTION
from mcq_analytics.postgres.base_snapshot import snapshot_connection
from mcq_analytics.quality.audits import Audits
from mcq_analytics.quality.corrections import Corrections
from mcq_analytics_tests.conftest import MakeDatabase
from mcq_analytics_tests.facts_of import execute, run_facts, scalar
from mcq_analytics_tests.loose_tables import DAY, NINE, create_base_tables

INTERACTION = (
    "SELECT concat_ws(' ', answer_count, coalesce(final_answer_option, '-'), is_correct) "
    "FROM analytics.question_interaction_fact WHERE question_id = '{}'"
)
"""Answers, final option (`-` for null), correct or not, of a question."""
OPTION_TYPES: dict[str, tuple[str, str]] = {
    "json": ('["A","C"]', '{"a": 1}'),
    "jsonb": ('["A", "C"]', '{"a": 1}'),
    "text[]": ("{A,C}", "{B}"),
    "point": ("(1,2)", "(3,4)"),
    "boolean": ("true", "false"),
    "integer": ("3", "12"),
    "numeric": ("3.50", "12"),
    "double precision": ("0.1", "Infinity"),
    "bytea": ("\\x00ff", "\\x01"),
    "uuid": ("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "00000000-0000-0000-0000-000000000000"),
    "interval": ("1 mon", "30 days"),
    "inet": ("10.0.0.1", "::1"),
    "tsvector": ("a b", "c"),
    "char(3)": ("A", "B"),
    "date": ("2024-01-31", "infinity"),
    "choice": ("the first", "another"),
    "pair": ("(A,1)", "(B,2)"),
}


@pytest.mark.parametrize("kind", list(OPTION_TYPES))
def test_every_statement_takes_options_of_any_type(
    make_database: MakeDatabase, spark: SparkSession, kind: str
) -> None:
    database = make_database(None)
    execute(
        database,
        "CREATE TYPE choice AS ENUM ('the first', 'another')",
        "CREATE TYPE pair AS (option text, number int)",
    )
    create_base_tables(database, option=kind)
    right, wrong = (f"CAST('{value}' AS {kind})" for value in OPTION_TYPES[kind])
    execute(
        database,
        f"INSERT INTO questions SELECT '1', {right}",
        "INSERT INTO questions VALUES ('2', NULL)",
        *(
            f"INSERT INTO answers SELECT {number}, 's', '{question}', 't', 'x', {option}, "
            f"'2024-01-01 09:1{minute}Z'"
            for number, question, option, minute in (
                ("'1'", 1, wrong, 0),
                ("'2'", 1, right, 1),
                ("NULL", 2, wrong, 0),
                ("NULL", 2, right, 0),
                ("NULL", 2, "NULL", 0),
            )
        ),
    )
    run_facts(database, spark, NINE)
    texts = [str(scalar(database, f"SELECT CAST({one} AS text)")) for one in (right, wrong)]
    assert scalar(database, INTERACTION.format(1)) == f"2 {texts[0]} t"
    assert scalar(database, INTERACTION.format(2)) == f"3 {max(t.encode() for t in texts).decode()}"
    with snapshot_connection(database.engine(), "public") as (connection, base):
        audits = Audits(QUESTION_INTERACTION, base, "analytics", DAY)
        found = audits.recomputed(connection)
        assert (found.sampled, found.wrong, found.awaiting) == (1, (), ())
        assert audits.references(connection) == {
            "answers_without_question": 0,
            "answers_without_session": 5,
        }
        assert stale_hours(connection, base, "analytics", DAY) == {}
        corrections = Corrections(base, "analytics")
        assert corrections.wrong_rows_after(connection, None, 10_000).hours == set()
        assert corrections.moves(connection, [NINE.start]).rows == 0
