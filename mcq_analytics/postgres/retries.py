"""How often, and after which waits, work is tried again that failed for a reason that passes.

Which reasons those are is in `faults`.
"""

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
"""The wait doubles from trial to trial; up to as much as the first is added at random, so that runs
which were hit together do not come back together."""


def retrying(doing: str) -> Iterable[AttemptManager]:
    """Return the trials of some work, to be looped over: `for trial in …: with trial: …`.

    A permanent error ends the loop at once, the last trial's with the last; both are raised as
    they are.
    """

    def tell(state: RetryCallState) -> None:
        assert state.outcome is not None
        assert state.next_action is not None
        error = state.outcome.exception()
        assert error is not None
        logger.warning(
            "%s: %s; trying again in %.1f s (%d of %d)",
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
        before_sleep=tell,
        reraise=True,
    )
