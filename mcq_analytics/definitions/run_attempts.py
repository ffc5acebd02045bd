"""The attempts of a Dagster run: one per fact, open from its first input until its output.

What an attempt does is in `compute.attempt`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType

from dagster import DagsterInstance, DagsterRunStatus

from mcq_analytics.compute.attempt import Attempt
from mcq_analytics.definitions.resources import DatabaseResource
from mcq_analytics.model.facts import Fact
from mcq_analytics.model.windows import Window


class RunAttempts:
    """Opens and ends the attempts of one run; a context manager around the run.

    An attempt that is still open at the end belongs to an asset that failed, or was cancelled,
    between its inputs and its output, and is recorded so.
    """

    def __init__(self, database: DatabaseResource, instance: DagsterInstance, run_id: str) -> None:
        self._database = database
        self._instance = instance
        self._run_id = run_id
        self._open: dict[Fact, Attempt] = {}

    def __enter__(self) -> RunAttempts:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._open:
            return
        reason = KeyboardInterrupt() if self._is_cancelled() else error
        with ExitStack() as all_of_them:
            for fact in list(self._open):
                all_of_them.callback(self._end, fact, reason)

    @contextmanager
    def reading(self, fact: Fact, window: Window) -> Iterator[Attempt]:
        """Yield the fact's attempt, which begins with the first input; an error ends it."""
        try:
            if fact not in self._open:
                self._open[fact] = Attempt(self._database.open(), fact, window, self._run_id)
                self._open[fact].begin()
            yield self._open[fact]
        except BaseException as error:
            self._end(fact, error)
            raise

    @contextmanager
    def storing(self, fact: Fact) -> Iterator[Attempt]:
        """Yield the fact's attempt, to be committed, and end it."""
        try:
            yield self._open[fact]
        except BaseException as error:
            self._end(fact, error)
            raise
        self._end(fact, None)

    def _end(self, fact: Fact, error: BaseException | None) -> None:
        attempt = self._open.pop(fact, None)
        if attempt is not None:
            attempt.end(error)

    def _is_cancelled(self) -> bool:
        run = self._instance.get_run_by_id(self._run_id)
        cancelled = (DagsterRunStatus.CANCELING, DagsterRunStatus.CANCELED)
        return run is not None and run.status in cancelled
