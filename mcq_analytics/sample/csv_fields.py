"""Parsing a CSV field into a value of a base table, or saying what is wrong with it."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from datetime import datetime

from mcq_analytics.errors import UsageError
from mcq_analytics.model.base_tables import BASE_COLUMNS, Role
from mcq_analytics.model.facts import IdType
from mcq_analytics.model.windows import parse_timestamp, shown
from mcq_analytics.postgres.inspection import BaseTables

NUL = "\udc00"
"""Stands for a NUL, at which the `csv` of Python 3.10 stops, even in columns that are not needed.

Lone surrogates stand for all that is not text. No decoder makes this one, nor one below DC80."""

_NOT_TEXT = re.compile("[\ud800-\udfff]")
_UUID = re.compile(r"(?:urn:uuid:)?\{?[0-9a-f]{4}(?:-?[0-9a-f]{4}){7}\}?", re.IGNORECASE)
_INTEGER_BOUNDS = {IdType.INTEGER: 2**31, IdType.BIGINT: 2**63}

Parse = Callable[[str], object]


def parsers(base: BaseTables, table: str) -> dict[str, Parse]:
    """Return a function per column that parses a field; an empty field is null.

    The functions raise ValueError with what is wrong with the field.
    """
    return {
        column: _nullable(
            _parser(
                role,
                base.id_type(table, column) if role is Role.ID else None,
                zoned=getattr(base.sql_type(table, column), "timezone", False),
            )
        )
        for column, role in BASE_COLUMNS[table].items()
    }


def as_the_server_writes(value: object) -> str:
    """Return a parsed value as the server's messages quote it, in a session whose zone is UTC."""
    if value is None:
        return "null"
    if isinstance(value, bytes):
        return str(uuid.UUID(bytes=value))
    if isinstance(value, datetime):
        text = value.replace(tzinfo=None).isoformat(" ")
        return (text.rstrip("0") if value.microsecond else text) + ("+00" if value.tzinfo else "")
    return str(value)


def _nullable(parse: Parse) -> Parse:
    def parsed(text: str) -> object:
        if not text.isascii() and _NOT_TEXT.search(text):
            if NUL in text:
                raise ValueError("holds a NUL character, which PostgreSQL does not store")
            raise ValueError("holds bytes that are not UTF-8")
        return parse(text) if text else None

    return parsed


def _parser(role: Role, id_type: IdType | None, *, zoned: bool) -> Parse:
    if role is Role.TIME:
        return lambda text: _time(text, zoned)
    if id_type in _INTEGER_BOUNDS:
        bound = _INTEGER_BOUNDS[id_type]
        return lambda text: _number(text, bound)
    if id_type is IdType.UUID:
        return _uuid
    return str


def _time(text: str, zoned: bool) -> datetime:
    try:
        moment = parse_timestamp(text)
    except UsageError as error:
        raise ValueError(str(error)) from None
    return moment if zoned else moment.replace(tzinfo=None)


def _number(text: str, bound: int) -> int:
    match = re.fullmatch(r"\s*([+-]?)([0-9]+)\s*", text)
    if match is None:
        raise ValueError(f"{shown(text)} is not a whole number")
    digits = match.group(2).lstrip("0") or "0"
    # Python refuses to parse thousands of digits, with a message of its own.
    number = int(match.group(1) + digits) if len(digits) <= len(str(bound)) else bound
    if not -bound <= number < bound:
        raise ValueError(f"{shown(text)} is out of the column's range")
    return number


def _uuid(text: str) -> bytes:
    if not _UUID.fullmatch(text):
        raise ValueError(f"{shown(text)} is not a uuid")
    return uuid.UUID(text).bytes
