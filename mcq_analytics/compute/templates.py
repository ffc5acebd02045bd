"""Fills the fields of our SQL templates: table names and typed column expressions.

The statements of `selections`, `fingerprints` and `quality` are such templates. Their values are
bound parameters (`:window_start`, `:window_end`). `{a.test_id}` is an id in the form that
`base_columns` calls comparable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace

from mcq_analytics.compute.base_columns import EARLIEST, LATEST, BaseColumns, comparable
from mcq_analytics.compute.judged_answers import ANSWER_KEY
from mcq_analytics.model.base_tables import BASE_COLUMNS
from mcq_analytics.model.facts import KEY_MEANINGS, QUESTION_INTERACTION, Fact, IdType
from mcq_analytics.postgres.identifiers import quoted
from mcq_analytics.postgres.inspection import BaseTables

# The planner has to see that nearly all rows have keys: it takes `isfinite`, or a comparison with
# an unknown value, for a third of them, and a few such thirds for a single row.
_HAS_KEYS = {
    "answers": """(a."timestamp" <> 'infinity' AND a."timestamp" <> '-infinity'
        AND a.student_id IS NOT NULL AND a.test_id IS NOT NULL AND a.question_id IS NOT NULL
        AND {answer_fits})""",
    "submissions": """(b.submit_time <> 'infinity' AND b.submit_time <> '-infinity'
        AND b.student_id IS NOT NULL AND b.test_id IS NOT NULL AND {submission_fits})""",
}

_HOURS_IN_WINDOW = (
    "(h.hour >= CAST(:window_start AS timestamptz) AND h.hour < CAST(:window_end AS timestamptz))"
)


@dataclass(frozen=True)
class Templates:
    """Fills templates for one fact over given base tables.

    `names` are further fields: quoted names of tables of ours, such as `hours` and `fact`.
    """

    fact: Fact
    base: BaseTables
    names: Mapping[str, str]

    def fill(self, template: str, **more: str) -> str:
        """Return a template with its fields filled in, those of `more` too."""
        return template.format(**self._fields(), **more)

    def key_type(self, column: str) -> IdType:
        """Return the type of a column of the fact's keys."""
        table = self.fact.key_table
        return self.base.id_type(table if column in BASE_COLUMNS[table] else "answers", column)

    def _fields(self) -> dict[str, object]:
        columns = BaseColumns(self.base)
        fits = {
            "answer_fits": columns.ids_fit("answers", QUESTION_INTERACTION.key),
            "submission_fits": columns.ids_fit("submissions", ("student_id", "test_id")),
        }
        return {
            **{
                name: quoted(table.schema or "public", name)
                for name, table in self.base.tables.items()
            },
            **self.names,
            "earliest": EARLIEST,
            "latest": LATEST,
            **fits,
            "answer_has_keys": _HAS_KEYS["answers"].format(**fits),
            "submission_has_keys": _HAS_KEYS["submissions"].format(**fits),
            "a": columns.comparable_ids("answers"),
            "b": columns.comparable_ids("submissions"),
            "f": self._our_ids("f"),
            "h": self._our_ids("h"),
            "hours_key": ", ".join(getattr(self._our_ids("h"), name) for name in self.fact.key),
            "answers_in_window": columns.in_window("answers", "timestamp"),
            "submissions_in_window": columns.in_window("submissions", "submit_time"),
            "hours_in_window": _HOURS_IN_WINDOW,
            "hour_start": columns.searched("answers", "timestamp", "w.hour"),
            "hour_end": columns.searched("answers", "timestamp", "w.hour + interval '1 hour'"),
            "answer_time": columns.time("answers", "timestamp"),
            "submit_time": columns.time("submissions", "submit_time"),
            "session_expiry": columns.session_expiry(),
            "answer_key": ANSWER_KEY,
            "answer_columns": columns.select_list("answers"),
            "submission_columns": columns.select_list("submissions"),
            **{
                f"{table}_as_sent": columns.select_list(table, as_sent=True)
                for table in BASE_COLUMNS
            },
            "answer_matches": self._matches("a", "answers"),
            "submission_matches": self._matches("b", "submissions"),
        }

    def _our_ids(self, alias: str) -> SimpleNamespace:
        """Return the ids of one of our tables by column name, each as `comparable`."""
        return SimpleNamespace(
            **{
                column: comparable(f"{alias}.{quoted(column)}", self.key_type(column))
                for column in KEY_MEANINGS
            }
        )

    def _matches(self, alias: str, table: str) -> str:
        """Join a base table to the keys `k`, which came back from Spark's tasks as sent."""
        return " AND ".join(
            f"{alias}.{quoted(column)} = "
            + (
                f"CAST(k.{quoted(column)} AS uuid)"
                if self.key_type(column) is IdType.UUID
                else f"k.{quoted(column)}"
            )
            for column in self.fact.split_key
            if column in BASE_COLUMNS[table]
        )
