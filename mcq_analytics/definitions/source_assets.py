"""The base tables as source assets: their columns, owner and partitions."""

from __future__ import annotations

from collections.abc import Mapping

from dagster import AssetSpec, HourlyPartitionsDefinition, TableColumn, TableSchema

from mcq_analytics.postgres.inspection import BASE_COLUMNS, Role

IO_MANAGER_KEY = "postgres"
GROUP = "testing_platform"

_TYPES = {Role.ID: "id", Role.TIME: "timestamptz", Role.TEXT: "text"}

_MEANINGS: Mapping[str, Mapping[str, str]] = {
    "answers": {
        "answer_id": "The answer; decides the order of answers with the same timestamp",
        "student_id": "The student who answered",
        "question_id": "The question answered",
        "test_id": "The test",
        "session_id": "The sitting; it may have no row in sessions",
        "submitted_option": "The chosen option; null if the student cleared it",
        "timestamp": "Time of the answer, UTC",
    },
    "questions": {
        "question_id": "The question",
        "correct_option": "The answer key; null if there is none",
    },
    "sessions": {
        "session_id": "The sitting",
        "expiry_time": "Answers after it do not count; null if it never expires",
    },
    "submissions": {
        "student_id": "The student who submitted",
        "test_id": "The test; a student may submit it many times",
        "submit_time": "Time of the submission, UTC",
        "completion_status": "completed, in any letter case; anything else is incomplete",
    },
}

_DESCRIPTIONS = {
    "answers": "Every answer as the platform logged it, also late, corrected and cleared ones.",
    "questions": "The answer key.",
    "sessions": "Sittings and when they expire.",
    "submissions": "Every submission of a test, retakes included.",
}


def base_table_specs(hours: HourlyPartitionsDefinition) -> list[AssetSpec]:
    """Return the four source assets; `answers` and `submissions` are partitioned by hour."""
    return [
        AssetSpec(
            name,
            description=f"{_DESCRIPTIONS[name]} Owned by the testing platform; we only read it.",
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
