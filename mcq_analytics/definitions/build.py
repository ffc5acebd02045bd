"""Builds Dagster's definitions from settings: assets, checks, job, schedule, sensors, resources."""

from __future__ import annotations

import warnings

from dagster import (
    AssetsDefinition,
    AssetSelection,
    AssetSpec,
    BetaWarning,
    Definitions,
    define_asset_job,
    in_process_executor,
)

from mcq_analytics.definitions import automation
from mcq_analytics.definitions.assets import GROUP, fact_assets
from mcq_analytics.definitions.checks import fact_checks
from mcq_analytics.definitions.io_manager import postgres_io_manager
from mcq_analytics.definitions.partitions import hourly_partitions
from mcq_analytics.definitions.resources import DatabaseResource, ScalingSparkResource
from mcq_analytics.definitions.schedules import hourly_schedule
from mcq_analytics.definitions.sensors.alerts import alert_sensor
from mcq_analytics.definitions.sensors.late_data import late_data_sensor
from mcq_analytics.definitions.sensors.recovery import recovery_sensor
from mcq_analytics.definitions.source_assets import IO_MANAGER_KEY, base_table_specs
from mcq_analytics.settings import Settings

FACTS_JOB = "hourly_facts"


def build_definitions(settings: Settings, *, largest_load: int = 0) -> Definitions:
    """Return the definitions for `settings`.

    A process that makes several runs passes the records of the largest as `largest_load`. All
    steps of a run execute in one process, because they share a Spark session.
    """
    hours = hourly_partitions(settings.partition_start)
    with warnings.catch_warnings():
        # Ranged runs need the backfill policy, which Dagster calls beta; the version is pinned.
        warnings.simplefilter("ignore", BetaWarning)
        assets: list[AssetSpec | AssetsDefinition] = [
            *base_table_specs(hours),
            fact_assets(hours, settings.docs_url),
        ]
    facts = define_asset_job(
        FACTS_JOB,
        selection=AssetSelection.groups(GROUP),
        description="The three facts of an hour, or of a range of hours in one run.",
    )
    schedules = [hourly_schedule(FACTS_JOB, settings)]
    asking = [recovery_sensor(FACTS_JOB, settings), late_data_sensor(FACTS_JOB, settings)]
    watched = (*(one.name for one in schedules), *(one.name for one in asking))
    sensors = [*asking, alert_sensor(settings, watched)]
    if not settings.automation:
        schedules = [automation.idle_schedule(one) for one in schedules]
        sensors = [automation.idle_sensor(one) for one in sensors]
    return Definitions(
        assets=assets,
        asset_checks=[fact_checks(settings)],
        jobs=[facts],
        schedules=schedules,
        sensors=sensors,
        resources={
            "database": DatabaseResource(settings=settings),
            "spark": ScalingSparkResource(settings=settings, largest_load=largest_load),
            IO_MANAGER_KEY: postgres_io_manager,
        },
        executor=in_process_executor,
    )
