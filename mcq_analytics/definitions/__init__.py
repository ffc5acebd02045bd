"""Dagster definitions: assets, checks, schedules, sensors, resources. `defs` is what Dagster loads.

SQL and Spark code are in the layers below.
"""

from __future__ import annotations

from dagster import Definitions, definitions

from mcq_analytics.definitions import automation
from mcq_analytics.definitions.build import build_definitions
from mcq_analytics.definitions.dev_server import start_beside_dagster_dev
from mcq_analytics.instance.console import set_up_log_lines
from mcq_analytics.settings import load_settings


@definitions
def defs() -> Definitions:
    """Read the settings of this process, and return its definitions."""
    set_up_log_lines()
    settings = load_settings()
    start_beside_dagster_dev(settings)
    if not settings.automation:
        automation.warn()
    return build_definitions(settings)
