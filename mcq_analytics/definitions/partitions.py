"""Partitions: Dagster's hours, and the windows that they stand for."""

from __future__ import annotations

from datetime import datetime, timezone

from dagster import HourlyPartitionsDefinition, TimeWindow

from mcq_analytics.windows import HOUR, Window

KEY_FORMAT = "%Y-%m-%d-%H:%M"
RANGE_START_TAG = "dagster/asset_partition_range_start"
RANGE_END_TAG = "dagster/asset_partition_range_end"


def hourly_partitions(start: datetime) -> HourlyPartitionsDefinition:
    """Return the partitions from `start` on: UTC hours, keyed by their beginning."""
    return HourlyPartitionsDefinition(
        start_date=start.astimezone(timezone.utc).strftime(KEY_FORMAT), timezone="UTC"
    )


def partition_key(hour: datetime) -> str:
    """Return the key of the partition that begins at `hour`."""
    return hour.astimezone(timezone.utc).strftime(KEY_FORMAT)


def range_tags(window: Window) -> dict[str, str]:
    """Return the run tags that make one run of all partitions of a window."""
    return {
        RANGE_START_TAG: partition_key(window.start),
        RANGE_END_TAG: partition_key(window.end - HOUR),
    }


def as_window(time_window: TimeWindow) -> Window:
    """Return a Dagster time window as a window of ours."""
    return Window(
        datetime.fromtimestamp(time_window.start.timestamp(), timezone.utc),
        datetime.fromtimestamp(time_window.end.timestamp(), timezone.utc),
    )
