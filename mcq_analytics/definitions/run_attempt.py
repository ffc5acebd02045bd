"""The attempt of a Dagster run: open from the step's first input until its last output.

What an attempt does is in `compute.attempt`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from dagster import DagsterInstance, DagsterRunStatus, RetryRequested

from mcq_analytics.compute.attempt import Attempt
from mcq_analytics.definitions.resources import DatabaseResource
from mcq_analytics.errors import SparkServerLostError
from mcq_analytics.model.windows import Window

STEP_RETRIES = 2
SECONDS_BETWEEN_STEPS = 2.0


@contextmanager
def redoing_step() -> Iterator[None]:
    """Let Dagster begin the step anew if the block loses its Spark server.

    Within its commit, an attempt begins anew by itself.
    """
    try:
        yield
    except SparkServerLostError as error:
        raise RetryRequested(STEP_RETRIES, SECONDS_BETWEEN_STEPS) from error


class RunAttempt:
    """Opens and ends the attempt of one run; a context manager around the run.

    Dagster hands over inputs and outputs one by one, so no single call can hold the attempt. One
    that is still open at the end failed, or was cancelled, between its inputs and its output, and
    is recorded so.
    """

    def __init__(self, database: DatabaseResource, instance: DagsterInstance, run_id: str) -> None:
        self._database = database
        self._instance = instance
        self._run_id = run_id
        self._open: Attempt | None = None

    def __enter__(self) -> RunAttempt:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._open is not None and not self._open.is_committed:
            self._end(KeyboardInterrupt() if self._is_cancelled() else error)

    @contextmanager
    def reading(self, window: Window) -> Iterator[Attempt]:
        """Yield the attempt, which begins with the first input; an error ends it."""
        with self._ending_on_error():
            if self._open is None:
                self._open = Attempt(
                    self._database.open(),
                    window,
                    self._run_id,
                    self._database.settings.driver_rows,
                )
                self._open.begin()
            yield self._open

    @contextmanager
    def storing(self) -> Iterator[Attempt]:
        """Yield the attempt, to be committed with the first output, and end it.

        It stays here for the other outputs, which report what it has stored.
        """
        assert self._open is not None
        attempt = self._open
        with self._ending_on_error():
            yield attempt
        attempt.end()

    @contextmanager
    def _ending_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self._end(error)
            raise

    def _end(self, error: BaseException | None) -> None:
        attempt, self._open = self._open, None
        if attempt is not None:
            attempt.end(error)

    def _is_cancelled(self) -> bool:
        run = self._instance.get_run_by_id(self._run_id)
        cancelled = (DagsterRunStatus.CANCELING, DagsterRunStatus.CANCELED)
        return run is not None and run.status in cancelled
