"""Retry policy for transient failures. Which failures are transient is in `error_kinds`."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from tenacity import (
    AttemptManager,
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    wait_exponential,
    wait_random,
)

from mcq_analytics.postgres.errors import first_line, is_transient

logger = logging.getLogger(__name__)

TRIALS = 5
FIRST_WAIT_SECONDS = 1.0
"""The wait doubles with each trial. Up to this many seconds are added at random, so that runs that
failed together do not retry together."""


def retrying(doing: str) -> Iterable[AttemptManager]:
    """Return the trials of some work, to loop over.

    A permanent error, or that of the last trial, is raised unchanged.

    >>> for trial in retrying("reading the status"):
    ...     with trial:
    ...         rows = read()
    """

    def log(state: RetryCallState) -> None:
        assert state.outcome is not None
        assert state.next_action is not None
        error = state.outcome.exception()
        assert error is not None
        logger.warning(
            "%s: %s; retrying in %.1f s (trial %d of %d)",
            doing,
            first_line(error),
            state.next_action.sleep,
            state.attempt_number + 1,
            TRIALS,
        )

    return Retrying(
        retry=retry_if_exception(is_transient),
        stop=stop_after_attempt(TRIALS),
        wait=wait_exponential(FIRST_WAIT_SECONDS) + wait_random(0, FIRST_WAIT_SECONDS),
        before_sleep=log,
        reraise=True,
    )
