"""Cursors of sensors that outlive a tick which fails, or ends without a word.

Dagster takes a cursor from ticks that succeed alone. What a tick came to is kept beside it, in the
instance's key-value storage, and counts for as long as the sensor's own cursor is the one that this
tick began or ended with: somebody who sets the cursor in the UI has the last word.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from dagster import DagsterInstance, SensorEvaluationContext

_NOTHING = "null"


@dataclass(frozen=True)
class KeptCursor:
    """The cursor of a sensor's tick, which began with `given`."""

    instance: DagsterInstance
    sensor_name: str
    given: str | None

    @classmethod
    def of(cls, context: SensorEvaluationContext, sensor_name: str) -> KeptCursor:
        """Return the cursor of the tick of a context."""
        return cls(context.instance, sensor_name, context.cursor)

    def read(self) -> str | None:
        """Return where the latest tick came to, whether it succeeded or failed."""
        kept = self._stored()
        if kept is None or kept == _NOTHING:
            return self.given
        begun_with, reached = json.loads(kept)
        return reached if self.given in (begun_with, reached) else self.given

    def keep(self, reached: str) -> None:
        """Keep what this tick has come to by now."""
        kept = json.dumps([self.given, reached])
        if kept != self._stored():
            self.instance.daemon_cursor_storage.set_cursor_values({self._key: kept})

    def forget(self) -> None:
        """Leave it to Dagster, which takes the cursor of this tick: it succeeds."""
        if self._stored() not in (None, _NOTHING):
            self.instance.daemon_cursor_storage.set_cursor_values({self._key: _NOTHING})

    @property
    def _key(self) -> str:
        return f"mcq_analytics/{self.sensor_name}"

    def _stored(self) -> str | None:
        return self.instance.daemon_cursor_storage.get_cursor_values({self._key}).get(self._key)
