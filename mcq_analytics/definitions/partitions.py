"""Hourly partitions: Dagster's keys, ranges and run requests, to and from our windows."""

from __future__ import annotations

from datetime import datetime, timezone

from dagster import HourlyPartitionsDefinition, RunRequest, TimeWindow

from mcq_analytics.model.windows import HOUR, Window

KEY_FORMAT = "%Y-%m-%d-%H:%M"
RANGE_START_TAG = "dagster/asset_partition_range_start"
RANGE_END_TAG = "dagster/asset_partition_range_end"


def hourly_partitions(start: datetime) -> HourlyPartitionsDefinition:
    """Return the partitions from `start` on: UTC hours, with the start of the hour as key."""
    return HourlyPartitionsDefinition(
        start_date=start.astimezone(timezone.utc).strftime(KEY_FORMAT), timezone="UTC"
    )


def partition_key(hour: datetime) -> str:
    """Return the key of the partition that starts at `hour`."""
    return hour.astimezone(timezone.utc).strftime(KEY_FORMAT)


def hour_of(key: str) -> datetime:
    """Return the start of the partition with a key."""
    return datetime.strptime(key, KEY_FORMAT).replace(tzinfo=timezone.utc)


def range_tags(window: Window) -> dict[str, str]:
    """Return the tags with which one run covers all partitions of a window."""
    return {
        RANGE_START_TAG: partition_key(window.start),
        RANGE_END_TAG: partition_key(window.end - HOUR),
    }


def as_window(time_window: TimeWindow) -> Window:
    """Convert a Dagster time window."""
    return Window(
        datetime.fromtimestamp(time_window.start.timestamp(), timezone.utc),
        datetime.fromtimestamp(time_window.end.timestamp(), timezone.utc),
    )


def run_request(window: Window, tick: str | None) -> RunRequest:
    """Return Dagster's request of a run of the facts' job over a window.

    If `tick` is given, a repeated tick starts no second run.
    """
    key = f"{tick} {window}" if tick else None
    if window.hours == 1:
        return RunRequest(run_key=key, partition_key=partition_key(window.start))
    return RunRequest(run_key=key, tags=range_tags(window))
