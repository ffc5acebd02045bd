"""Errors that a user can act on. `postgres.errors` makes them from database and Spark errors."""

from __future__ import annotations


class McqError(Exception):
    """Something that the user can fix; the message is one line with the cause and the remedy.

    Commands print the message alone and exit with 1. The original error, if any, is chained.
    """


class LockTimeoutError(McqError):
    """Another run held the lock for too long. Nothing was attempted, so no hour failed."""


class UsageError(McqError):
    """The call itself is wrong: an option, a time or a name. Commands exit with 2."""


class BaseTablesChangedError(Exception):
    """Several connections read different states of the base tables: all must read again."""


class SparkServerLostError(McqError):
    """A Spark server has ended, or ended a session. Another session may be had a moment later."""
