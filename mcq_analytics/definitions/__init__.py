"""What Dagster loads. SQL and the Spark session are in `storage`, computation in `transforms`."""

from __future__ import annotations

from dagster import Definitions, definitions

from mcq_analytics.definitions.build import build_definitions


@definitions
def defs() -> Definitions:
    """Return the definitions for the settings of this environment."""
    return build_definitions()
