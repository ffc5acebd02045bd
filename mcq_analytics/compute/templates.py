"""Fills the fields of our SQL templates: table names and typed column expressions.

The statements of `selections`, `fingerprints` and `quality` are such templates. Their values are
bound parameters (`:window_start`, `:window_end`). `{a.test_id}` is an id in the form that
`base_columns` calls comparable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace

from mcq_analytics.compute.base_columns import (
    ALIASES,
    EARLIEST,
    LATEST,
    BaseColumns,
    comparable,
)
from mcq_analytics.compute.judged_answers import (
    ALL_ANSWER_KEYS,
    ALL_EXPIRIES,
    ANSWER_KEY,
    ANSWER_KEYS,
    EXPIRIES,
)
from mcq_analytics.model.base_tables import BASE_COLUMNS
from mcq_analytics.model.facts import KEY_MEANINGS, QUESTION_INTERACTION, STUDENT_TEST
from mcq_analytics.postgres.identifiers import quoted
from mcq_analytics.postgres.inspection import BaseTables
from mcq_analytics.postgres.probes import Probe

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
    """Fills templates over given base tables.

    `names` are further fields: quoted names of tables of ours, such as `hours`.
    """

    base: BaseTables
    names: Mapping[str, str]

    def fill(self, template: str, **more: str) -> str:
        """Return a template with its fields filled in, those of `more` too."""
        return template.format(**self._fields(), **more)

    def _fields(self) -> dict[str, object]:
        columns = BaseColumns(self.base)
        fits = {
            "answer_fits": columns.ids_fit("answers", QUESTION_INTERACTION.key),
            "submission_fits": columns.ids_fit("submissions", STUDENT_TEST),
        }
        names = {
            **{
                name: quoted(table.schema or "public", name)
                for name, table in self.base.tables.items()
            },
            **self.names,
        }
        own = {
            "session_expiry": columns.session_expiry(),
            "answer_key": ANSWER_KEY,
            "session_matches": self._matches("sessions", ("session_id",)),
            "question_matches": self._matches("questions", ("question_id",)),
        }
        return {
            **names,
            **own,
            **fits,
            "earliest": EARLIEST,
            "latest": LATEST,
            "answer_has_keys": _HAS_KEYS["answers"].format(**fits),
            "submission_has_keys": _HAS_KEYS["submissions"].format(**fits),
            "a": columns.comparable_ids("answers"),
            "b": columns.comparable_ids("submissions"),
            "f": self._our_ids("f"),
            "h": self._our_ids("h"),
            "answers_in_window": columns.in_window("answers", "timestamp"),
            "submissions_in_window": columns.in_window("submissions", "submit_time"),
            "hours_in_window": _HOURS_IN_WINDOW,
            "hour_start": columns.searched("answers", "timestamp", "w.hour"),
            "hour_end": columns.searched("answers", "timestamp", "w.hour + interval '1 hour'"),
            "answer_time": columns.time("answers", "timestamp"),
            "submit_time": columns.time("submissions", "submit_time"),
            "answer_columns": columns.select_list("answers"),
            "submission_columns": columns.select_list("submissions"),
            **{
                f"{table}_as_sent": columns.select_list(table, as_sent=True)
                for table in BASE_COLUMNS
            },
            "answers_of_key": self._rows_of_key("answers"),
            "submissions_of_key": self._rows_of_key("submissions"),
            "expiries": EXPIRIES["sessions" in self.base.probes].format(**names, **own),
            "answer_keys": ANSWER_KEYS["questions" in self.base.probes].format(**names, **own),
            "all_expiries": ALL_EXPIRIES.format(**names, **own),
            "all_answer_keys": ALL_ANSWER_KEYS.format(**names, **own),
        }

    def _our_ids(self, alias: str) -> SimpleNamespace:
        """Return the ids of one of our tables by column name, each as `comparable`."""
        return SimpleNamespace(
            **{
                column: comparable(
                    f"{alias}.{quoted(column)}", self.base.id_type("answers", column)
                )
                for column in KEY_MEANINGS
            }
        )

    def _rows_of_key(self, table: str) -> str:
        """Join a base table to the students' tests `k`: by probes if an index serves them.

        The planner cannot turn a probe (`OFFSET 0`) into a scan of the table, nor into a search by
        an index on the test, which would read all students of the test for each of them.
        """
        alias, name = ALIASES[table], quoted(self.base[table].schema or "public", table)
        condition = self._matches(table, STUDENT_TEST)
        if table not in self.base.probes:
            return f"JOIN {name} {alias} ON {condition}"
        return (
            f"CROSS JOIN LATERAL (SELECT * FROM {name} {alias} WHERE {condition} OFFSET 0) {alias}"
        )

    def _matches(self, table: str, columns: tuple[str, ...]) -> str:
        """Compare columns of a base table with those of the keys `k`."""
        probe = self.base.probes.get(table, Probe.BY_KEY)
        return probe.condition(
            {f"{ALIASES[table]}.{quoted(column)}": f"k.{quoted(column)}" for column in columns}
        )
