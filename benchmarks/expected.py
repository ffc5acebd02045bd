"""What the facts must be, by the recompute in plain SQL, and how many rows differ."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from psycopg2 import sql

from benchmarks.datasets import Dataset, arrive, script
from benchmarks.server import DATABASE, Server

KEYS: Mapping[str, tuple[str, ...]] = {
    "question_interaction_fact": ("student_id", "test_id", "question_id"),
    "test_summary_fact": ("student_id", "test_id"),
    "test_funnel_fact": ("test_id",),
}
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "question_interaction_fact": (
        *("first_answer_time", "last_answer_time", "answer_count", "final_answer_option"),
        *("is_correct", "revisited", "time_spent"),
    ),
    "test_summary_fact": (
        *("total_questions", "questions_attempted", "correct_answers", "accuracy_percent"),
        "time_spent",
    ),
    "test_funnel_fact": (
        *("total_submissions", "completed_submissions", "incomplete_submissions"),
        *("completion_rate", "avg_submit_time"),
    ),
}
CLOSE = ("accuracy_percent", "completion_rate", "avg_submit_time")
"""Averages: sums in another order may differ in the last digits, a billionth at most."""

# Names come from the tables above and from contestants, never from outside.
_WRONG = sql.SQL(
    "SELECT count(*) FROM {actual} a FULL JOIN pg_temp.{expected} e ON {same_key} "
    "WHERE a.{first} IS NULL OR e.{first} IS NULL OR {unequal}"
)
_CLOSE = sql.SQL(
    "(a.{0} IS NULL) <> (e.{0} IS NULL) OR abs(a.{0} - e.{0}) > 1e-9 * greatest(1, abs(e.{0}))"
)
_EXACT = sql.SQL("a.{0} IS DISTINCT FROM e.{0}")


class Expected:
    """The facts after all rows up to a time have arrived, in files, by dataset and time."""

    def __init__(self, server: Server, folder: Path) -> None:
        self._server = server
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def prepare(self, dataset: Dataset, until: datetime) -> None:
        """Compute the facts once, unless they are there."""
        if self._file(dataset, until, "test_funnel_fact").exists():
            return
        self._server.create(DATABASE, dataset.name)
        arrive(self._server, until)
        with self._server.connection() as connection, connection.cursor() as cursor:
            cursor.execute(script("recompute.sql"))
            for fact in KEYS:
                copy = sql.SQL("COPY plain.{} TO STDOUT (FORMAT binary)")
                with self._file(dataset, until, fact).open("wb") as file:
                    cursor.copy_expert(copy.format(sql.Identifier(fact)), file)

    def wrong_rows(
        self, dataset: Dataset, until: datetime, actual: Mapping[str, tuple[str, str]]
    ) -> int:
        """Return the number of rows, over all three facts, that are missing, differ or are extra.

        `actual` gives the schema and table of each fact in the measured database.
        """
        wrong = 0
        with self._server.connection() as connection, connection.cursor() as cursor:
            for fact, key in KEYS.items():
                # The same columns as the recompute's tables, whatever the contestant's have.
                cursor.execute(
                    sql.SQL("CREATE TEMPORARY TABLE {0} (LIKE plain.{0})").format(
                        sql.Identifier(fact)
                    )
                )
                copy = sql.SQL("COPY pg_temp.{} FROM STDIN (FORMAT binary)")
                with self._file(dataset, until, fact).open("rb") as file:
                    cursor.copy_expert(copy.format(sql.Identifier(fact)), file)
                cursor.execute(sql.SQL("ANALYZE pg_temp.{}").format(sql.Identifier(fact)))
                cursor.execute(_comparison(fact, key, actual[fact]))
                wrong += int(cursor.fetchone()[0])
        return wrong

    def _file(self, dataset: Dataset, until: datetime, fact: str) -> Path:
        return self._folder / f"{dataset.name}-{until:%Y%m%d%H}-{fact}.copy"


def _comparison(fact: str, key: tuple[str, ...], actual: tuple[str, str]) -> sql.Composed:
    unequal = [
        (_CLOSE if name in CLOSE else _EXACT).format(sql.Identifier(name)) for name in COLUMNS[fact]
    ]
    return _WRONG.format(
        actual=sql.Identifier(*actual),
        expected=sql.Identifier(fact),
        first=sql.Identifier(key[0]),
        same_key=sql.SQL(" AND ").join(
            sql.SQL("a.{0} = e.{0}").format(sql.Identifier(name)) for name in key
        ),
        unequal=sql.SQL(" OR ").join(unequal),
    )
