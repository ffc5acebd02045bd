"""Why a run failed, in one line, from its recorded events.

Dagster does not export the class of recorded errors, so it is imported from its internals.
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

from mcq_analytics.errors import LockTimeoutError, McqError, UsageError
from mcq_analytics.postgres.errors import first_line

DIED = (
    "the process of the run was killed before the run ended, perhaps because memory ran out: if it "
    "happens again, lower MCQ_SPARK_DRIVER_MEMORY, shorten the window, or give it more memory"
)

# The message of Dagster's code server about a run whose process is gone. Only this text identifies
# it: Dagster has no class or constant for it.
_FAILED_FROM_OUTSIDE = "This run has been marked as failed from outside the execution context."

_INTERRUPTIONS = {DagsterExecutionInterruptedError.__name__, KeyboardInterrupt.__name__}
"""Dagster's own, and that of Spark, which handles Ctrl-C once a session has started."""

_OURS = tuple(kind.__name__ for kind in (McqError, UsageError, LockTimeoutError))


def first_error(events: Iterable[DagsterEvent]) -> str | None:
    """Return the first error, as our own message if it is one of ours.

    Our message already names fault and remedy. Of any other error only its text is known here,
    which may quote rows: it is shown, and no remedy is guessed from it.
    """
    for event in events:
        if event.event_type not in (DagsterEventType.STEP_FAILURE, DagsterEventType.RUN_FAILURE):
            continue
        error = getattr(event.event_specific_data, "error", None)
        if error is None:
            message = event.message or "the run failed"
            return DIED if message == _FAILED_FROM_OUTSIDE else first_line(RuntimeError(message))
        return error_line(error)
    return None


def error_line(error: SerializableErrorInfo, where: str = "the run") -> str:
    """Return the message of our own error among the causes, or else of the first cause."""
    while error.cause is not None and error.cls_name not in _OURS:
        error = error.cause
    message = RuntimeError(error.message.strip().partition(": ")[2] or error.cls_name)
    return first_line(message) if error.cls_name in _OURS else f"{where}: {first_line(message)}"


def error_of_run(instance: DagsterInstance, run_id: str) -> str:
    """Return the first error of a past run."""
    return first_error(_failures(instance, run_id)) or "no error is recorded"


class Ending(Enum):
    """How a run ended that Dagster records as failed."""

    FAILED = "failed"
    GAVE_UP = "gave up waiting"
    STOPPED = "stopped"


def ending_of(instance: DagsterInstance, run_id: str) -> Ending:
    """Return whether a run failed, gave up waiting for a lock, or was interrupted."""
    steps = [
        _classes(getattr(event.event_specific_data, "error", None))
        for event in _failures(instance, run_id)
        if event.event_type is DagsterEventType.STEP_FAILURE
    ]
    if any(_INTERRUPTIONS.intersection(classes) for classes in steps):
        return Ending.STOPPED
    if steps and all(LockTimeoutError.__name__ in classes for classes in steps):
        return Ending.GAVE_UP
    return Ending.FAILED


def _classes(error: SerializableErrorInfo | None) -> list[str | None]:
    """Return the class names of an error and its causes, as Dagster recorded them."""
    names = []
    while error is not None:
        names.append(error.cls_name)
        error = error.cause
    return names


def _failures(instance: DagsterInstance, run_id: str) -> list[DagsterEvent]:
    kinds = {DagsterEventType.STEP_FAILURE, DagsterEventType.RUN_FAILURE}
    entries = instance.all_logs(run_id, of_type=kinds)
    return [entry.dagster_event for entry in entries if entry.dagster_event is not None]
