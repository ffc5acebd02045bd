"""The error that a user can act on. How database and Spark errors become one is in `faults`."""

from __future__ import annotations


class McqError(Exception):
    """Something the user can put right; the message is one line and says how.

    Commands print the message alone and exit with 1. The cause, where there is one, is chained.
    """


class WaitedInVainError(McqError):
    """Another run held a fact's lock for too long: nothing was tried, so no hour has failed."""


class UsageError(McqError):
    """The call itself is wrong: an option, a time or a name. Commands exit with 2."""


class BaseTablesChangedError(Exception):
    """What was read is of more than one state of the base tables: read all of it again."""
