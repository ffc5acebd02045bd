"""A query in an attempt's snapshot that runs on a thread, beside what the attempt does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Generic, TypeVar

from sqlalchemy import Connection
from sqlalchemy.engine import Engine

from mcq_analytics.postgres.base_snapshot import connection_in

Result = TypeVar("Result")


class InBackground(Generic[Result]):
    """Runs a function of a connection that reads in an exported snapshot.

    The snapshot must be held until `result` has returned.
    """

    def __init__(self, engine: Engine, snapshot: str, work: Callable[[Connection], Result]) -> None:
        self._engine = engine
        self._snapshot = snapshot
        self._work = work
        self._future: Future[Result] = Future()
        self._cancel: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._run, name="snapshot-query", daemon=True)
        self._thread.start()

    def result(self) -> Result:
        """Wait for the function's result and return it, or raise its error."""
        return self._future.result()

    def stop(self) -> None:
        """Cancel the function's query, if it still runs, and wait for its end."""
        # The query may end at this moment, and its connection with it.
        with suppress(Exception):
            self._cancel()
        self._thread.join()

    def _run(self) -> None:
        try:
            with connection_in(self._engine, self._snapshot) as connection:
                self._cancel = connection.connection.cancel
                result = self._work(connection)
            self._future.set_result(result)
        except BaseException as error:
            self._future.set_exception(error)
        finally:
            self._cancel = lambda: None
