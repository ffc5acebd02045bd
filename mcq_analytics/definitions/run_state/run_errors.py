"""What went wrong in a run, in one line, as its events tell it.

Dagster does not export the class of recorded errors: it is imported from where it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from dagster import (
    DagsterEvent,
    DagsterEventType,
    DagsterExecutionInterruptedError,
    DagsterInstance,
)
from dagster_shared.error import SerializableErrorInfo

from mcq_analytics.errors import McqError, UsageError, WaitedInVainError
from mcq_analytics.postgres.errors import first_line

DIED = (
    "the process of the run was killed before the run ended, as where memory runs out: if it comes "
    "back, lower MCQ_SPARK_DRIVER_MEMORY, shorten the window, or give it more memory"
)

# What Dagster's code server calls a run whose process is gone. It tells how that ended in an event
# of its own, and there is neither a class nor a constant to know this one by.
_FAILED_FROM_OUTSIDE = "This run has been marked as failed from outside the execution context."

_INTERRUPTIONS = {DagsterExecutionInterruptedError.__name__, KeyboardInterrupt.__name__}
"""Dagster's own, and that of Spark, whose session takes Ctrl-C over once it has started."""

_OURS = tuple(kind.__name__ for kind in (McqError, UsageError, WaitedInVainError))


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
            said = event.message or "the run failed"
            return DIED if said == _FAILED_FROM_OUTSIDE else first_line(RuntimeError(said))
        return error_line(error)
    return None


def error_line(error: SerializableErrorInfo, where: str = "the run") -> str:
    """Return what a recorded error says: our own error among its causes, else the first of them."""
    while error.cause is not None and error.cls_name not in _OURS:
        error = error.cause
    said = RuntimeError(error.message.strip().partition(": ")[2] or error.cls_name)
    return first_line(said) if error.cls_name in _OURS else f"{where}: {first_line(said)}"


def error_of_run(instance: DagsterInstance, run_id: str) -> str:
    """Return what went wrong first in a run of the past."""
    return first_error(_failures(instance, run_id)) or "its records hold no error"


class Ending(Enum):
    """Why a run ended that Dagster calls failed."""

    FAILED = "failed"
    WAITED_IN_VAIN = "waited in vain"
    STOPPED = "stopped"


def ending_of(instance: DagsterInstance, run_id: str) -> Ending:
    """Return whether a run failed, or just waited for another one's lock, or was interrupted."""
    steps = [
        _classes(getattr(event.event_specific_data, "error", None))
        for event in _failures(instance, run_id)
        if event.event_type is DagsterEventType.STEP_FAILURE
    ]
    if any(_INTERRUPTIONS.intersection(classes) for classes in steps):
        return Ending.STOPPED
    if steps and all(WaitedInVainError.__name__ in classes for classes in steps):
        return Ending.WAITED_IN_VAIN
    return Ending.FAILED


def _classes(error: SerializableErrorInfo | None) -> list[str | None]:
    """Return the names of the classes of an error and its causes, as Dagster has kept them."""
    names = []
    while error is not None:
        names.append(error.cls_name)
        error = error.cause
    return names


def _failures(instance: DagsterInstance, run_id: str) -> list[DagsterEvent]:
    kinds = {DagsterEventType.STEP_FAILURE, DagsterEventType.RUN_FAILURE}
    entries = instance.all_logs(run_id, of_type=kinds)
    return [entry.dagster_event for entry in entries if entry.dagster_event is not None]
