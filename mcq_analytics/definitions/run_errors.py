"""What went wrong in a run, in one line, as its events tell it."""

from __future__ import annotations

from collections.abc import Iterable

from dagster import DagsterEvent, DagsterEventType, DagsterInstance

from mcq_analytics.errors import McqError, UsageError
from mcq_analytics.storage.faults import first_line

_OURS = (McqError.__name__, UsageError.__name__)


def first_error(events: Iterable[DagsterEvent]) -> str | None:
    """Return what went wrong first, in our own words where the error has them.

    Those told the fault when the error was raised. Of another error there is but a text here, which
    may hold rows: it is shown, and no remedy is guessed from it.
    """
    for event in events:
        if event.event_type not in (DagsterEventType.STEP_FAILURE, DagsterEventType.RUN_FAILURE):
            continue
        error = getattr(event.event_specific_data, "error", None)
        if error is None:
            return first_line(RuntimeError(event.message or "the run failed"))
        while error.cause is not None and error.cls_name not in _OURS:
            error = error.cause
        said = RuntimeError(error.message.strip().partition(": ")[2] or error.cls_name)
        return first_line(said) if error.cls_name in _OURS else f"the run: {first_line(said)}"
    return None


def error_of_run(instance: DagsterInstance, run_id: str) -> str:
    """Return what went wrong first in a run of the past."""
    kinds = {DagsterEventType.STEP_FAILURE, DagsterEventType.RUN_FAILURE}
    entries = instance.all_logs(run_id, of_type=kinds)
    events = [entry.dagster_event for entry in entries if entry.dagster_event is not None]
    return first_error(events) or "its records hold no error"
