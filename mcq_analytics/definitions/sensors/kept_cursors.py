"""Cursors of sensors that survive a tick that fails or dies.

Dagster stores the cursor of successful ticks only. So each tick also stores two cursors in the
instance's key-value storage: the one it started with, and the state it reached. If the sensor's own
cursor is either of them, the stored state is valid. Any other was set by hand, and wins.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from dagster import DagsterInstance, SensorEvaluationContext

_NOTHING = "null"


@dataclass(frozen=True)
class KeptCursor:
    """The cursor of a tick that began with `given`."""

    instance: DagsterInstance
    sensor_name: str
    given: str | None

    @classmethod
    def of(cls, context: SensorEvaluationContext, sensor_name: str) -> KeptCursor:
        """Return the cursor of the tick with this context."""
        return cls(context.instance, sensor_name, context.cursor)

    def read(self) -> str | None:
        """Return the state that the latest tick reached, whether it succeeded or failed."""
        kept = self._stored()
        if kept is None or kept == _NOTHING:
            return self.given
        begun_with, reached = json.loads(kept)
        return reached if self.given in (begun_with, reached) else self.given

    def keep(self, reached: str) -> None:
        """Keep the state that this tick has reached so far."""
        kept = json.dumps([self.given, reached])
        if kept != self._stored():
            self.instance.daemon_cursor_storage.set_cursor_values({self._key: kept})

    def forget(self) -> None:
        """Drop the copy: this tick succeeds, so Dagster stores its cursor."""
        if self._stored() not in (None, _NOTHING):
            self.instance.daemon_cursor_storage.set_cursor_values({self._key: _NOTHING})

    @property
    def _key(self) -> str:
        return f"mcq_analytics/{self.sensor_name}"

    def _stored(self) -> str | None:
        return self.instance.daemon_cursor_storage.get_cursor_values({self._key}).get(self._key)
