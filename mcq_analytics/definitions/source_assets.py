"""The base tables as source assets: their columns, owner and partitions."""

from __future__ import annotations

from dagster import AssetSpec, HourlyPartitionsDefinition, TableColumn, TableSchema

from mcq_analytics.model.base_tables import BASE_COLUMNS, COLUMN_MEANINGS, TABLE_MEANINGS, Role

IO_MANAGER_KEY = "postgres"
GROUP = "testing_platform"

_TYPES = {Role.ID: "id", Role.TIME: "timestamptz", Role.TEXT: "text"}


def base_table_specs(hours: HourlyPartitionsDefinition) -> list[AssetSpec]:
    """Return the four source assets; `answers` and `submissions` are partitioned by hour."""
    return [
        AssetSpec(
            name,
            description=f"{TABLE_MEANINGS[name]} Owned by the testing platform; only read here.",
            partitions_def=hours if name in ("answers", "submissions") else None,
            group_name=GROUP,
            kinds={"postgres", "table"},
            owners=["team:testing-platform"],
            metadata={
                "dagster/column_schema": TableSchema(
                    columns=[
                        TableColumn(column, _TYPES[role], description=COLUMN_MEANINGS[name][column])
                        for column, role in columns.items()
                    ]
                ),
            },
        ).with_io_manager_key(IO_MANAGER_KEY)
        for name, columns in BASE_COLUMNS.items()
    ]
