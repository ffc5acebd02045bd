"""What Dagster loads. SQL and the Spark session are in `storage`, computation in `transforms`."""

from __future__ import annotations

from dagster import Definitions, definitions

from mcq_analytics.definitions import automation
from mcq_analytics.definitions.build import build_definitions
from mcq_analytics.instance.console import name_and_date_lines
from mcq_analytics.settings import load_settings


@definitions
def defs() -> Definitions:
    """Return the definitions for the settings of this environment."""
    name_and_date_lines()
    settings = load_settings()
    if not settings.automation:
        automation.warn()
    return build_definitions(settings)
