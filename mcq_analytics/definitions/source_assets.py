"""The base tables as source assets: what they hold, who owns them, how they are partitioned."""

from __future__ import annotations

from collections.abc import Mapping

from dagster import AssetSpec, HourlyPartitionsDefinition, TableColumn, TableSchema

from mcq_analytics.postgres.inspection import BASE_COLUMNS, Role

IO_MANAGER_KEY = "postgres"
GROUP = "testing_platform"

_TYPES = {Role.ID: "id", Role.TIME: "timestamptz", Role.TEXT: "text"}

_MEANINGS: Mapping[str, Mapping[str, str]] = {
    "answers": {
        "answer_id": "The answer; orders answers of the same timestamp",
        "student_id": "Who answered",
        "question_id": "Which question",
        "test_id": "In which test",
        "session_id": "In which sitting; may have no row in sessions",
        "submitted_option": "The choice; null where the student cleared it",
        "timestamp": "When, UTC",
    },
    "questions": {
        "question_id": "The question",
        "correct_option": "The answer key; null where there is none",
    },
    "sessions": {
        "session_id": "The sitting",
        "expiry_time": "Answers after it do not count; null means never",
    },
    "submissions": {
        "student_id": "Who submitted",
        "test_id": "Which test; the same one may be submitted many times",
        "submit_time": "When, UTC",
        "completion_status": "completed, in any letter case, or anything else",
    },
}

_DESCRIPTIONS = {
    "answers": "Every answer that a student gave, as logged: late, corrected and cleared ones too.",
    "questions": "The answer key.",
    "sessions": "Sittings and when they expire.",
    "submissions": "Every hand-in of a test, retakes included.",
}


def base_table_specs(hours: HourlyPartitionsDefinition) -> list[AssetSpec]:
    """Return the four source assets; `answers` and `submissions` by hour, to arrive windowed."""
    return [
        AssetSpec(
            name,
            description=f"{_DESCRIPTIONS[name]} Owned by the testing platform; only read here.",
            partitions_def=hours if name in ("answers", "submissions") else None,
            group_name=GROUP,
            kinds={"postgres", "table"},
            owners=["team:testing-platform"],
            metadata={
                "dagster/column_schema": TableSchema(
                    columns=[
                        TableColumn(column, _TYPES[role], description=_MEANINGS[name][column])
                        for column, role in columns.items()
                    ]
                ),
            },
        ).with_io_manager_key(IO_MANAGER_KEY)
        for name, columns in BASE_COLUMNS.items()
    ]
