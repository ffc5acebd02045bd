"""Messages that wait to be accepted: their order, refusals and pauses. Pure functions on `State`.

`definitions.sensors.alerts` sends them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from mcq_analytics.alerting.state import Message, State
from mcq_analytics.model.windows import HOUR

TRIALS_BEFORE_EMAIL = 3
"""Ticks in which Slack has not accepted a message, before it goes by email."""


def with_message(state: State, text: str) -> State:
    """Return the state with a message at the end of the queue."""
    return replace(state, outbox=(*state.outbox, Message(text)))


def next_message(untried: Sequence[Message], *, last_refused: bool) -> Message:
    """Return which of the messages that this tick has not tried comes next: the oldest.

    After a refusal it is the one that was refused least often. If that is refused too, the channel
    is down; if not, it refuses only some messages.
    """
    if not last_refused:
        return untried[0]
    return min(untried, key=lambda message: message.refusals)


def accepted(state: State, message: Message) -> State:
    """Return the state after a message was accepted: it is not sent again."""
    outbox = list(state.outbox)
    outbox.remove(message)
    return replace(state, outbox=tuple(outbox))


def refused(state: State, message: Message) -> State:
    """Return the state after a message was refused: a later tick tries again."""
    outbox = list(state.outbox)
    outbox[outbox.index(message)] = replace(message, refusals=message.refusals + 1)
    return replace(state, outbox=tuple(outbox))


def paused(state: State, now: datetime, retry_after: float) -> State:
    """Return the state after Slack asked for a pause of some seconds; we grant at most an hour."""
    wait = timedelta(seconds=min(retry_after, HOUR.total_seconds()))
    return replace(state, not_before=now + wait)


def without_expired_pause(state: State, now: datetime) -> State:
    """Return the state without Slack's pause, if that is over."""
    over = state.not_before is not None and now >= state.not_before
    return replace(state, not_before=None) if over else state


def after_tick(state: State) -> State:
    """Return the state after a tick that could not send all messages."""
    outbox = (replace(message, trials=message.trials + 1) for message in state.outbox)
    return replace(state, outbox=tuple(outbox))
