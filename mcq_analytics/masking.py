"""Masking of secrets: remembers their values and replaces them with `***` in texts and errors.

`settings` decides which values are secrets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from html.entities import codepoint2name
from itertools import groupby

BLOT = "***"
SHORT = 8
"""Secrets with fewer characters are masked only as whole words."""

_remembered: set[str] = set()

# Our own error messages show the pattern `postgresql://user:password@host`: no secret there.
_URL_PASSWORD = re.compile(r"(://[^:/@\s]*):(?!password@host)\S*@")
_PASSWORD_PAIR = re.compile(
    r"\b((?:ssl)?password=)(?:'(?:[^'\\]|\\.)*'|\"[^\"]*\"|[^\s&,;)\]}'\"]+)", re.IGNORECASE
)
_NAMED_ESCAPES = {"\n": "n", "\r": "r", "\t": "t", "\b": "b", "\f": "f"}
_BESIDE_NO_WORD = r"(?:(?<!\w)|(?<=\\[nrtbf])|(?<=%[0-9A-Fa-f]{2}))"


def remember(*secrets: str | None) -> None:
    """Remember secrets: `mask` blots them out from now on in this process."""
    _remembered.update(secret for secret in secrets if secret)


def mask(text: str) -> str:
    """Return `text` with every secret blotted out, however it is encoded there.

    This covers remembered secrets in plain text, percent-encoded, escaped as in conninfo strings,
    Python or JSON, and as HTML, in any mixture; and any password in a URL or a `password=` pair,
    remembered or not. A secret that is shorter than `SHORT` characters, or has only letters, is
    masked only as a whole word: the password `mcq` leaves `mcq_analytics` readable.

    >>> remember("s3cret-p4ss")
    >>> mask("password s3cret%2Dp4ss refused")
    'password *** refused'
    """
    # A mask may turn a part of a word into a whole word: repeat until nothing changes.
    masked = _masked_once(text)
    while _shown(masked) < _shown(text):
        text, masked = masked, _masked_once(masked)
    return masked


def _shown(text: str) -> int:
    return len(text) - text.count("*")


def _masked_once(text: str) -> str:
    for pattern in _patterns(frozenset(_remembered)):
        text = pattern.sub(BLOT, text)
    text = _URL_PASSWORD.sub(rf"\1:{BLOT}@", text)
    return _PASSWORD_PAIR.sub(rf"\1{BLOT}", text)


class MaskedError(Exception):
    """Replaces an error whose text held a secret: has its class name and the masked text."""


def without_secrets(error: BaseException) -> BaseException:
    """Return the error with every secret masked, in its text and in those of its causes.

    Dagster records an error together with its causes.
    """
    return _clean(error, set())


def _clean(error: BaseException, seen: set[int]) -> BaseException:
    seen.add(id(error))
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    clean_cause = _clean(cause, seen) if cause is not None and id(cause) not in seen else None
    clean = error
    if any(mask(text) != text for text in [str(error), *getattr(error, "__notes__", [])]):
        kind = type(error)
        clean = MaskedError(f"{kind.__module__}.{kind.__qualname__}: {mask(str(error))}")
        clean.__traceback__ = error.__traceback__
    if clean is not error or clean_cause is not cause:
        clean.__cause__ = clean_cause
    return clean


@lru_cache(maxsize=8)
def _patterns(secrets: frozenset[str]) -> list[re.Pattern[str]]:
    """Return a pattern per secret, the longest first: a shorter one may be a part of it."""
    return [_pattern(secret) for secret in sorted(secrets, key=lambda one: (-len(one), one))]


def _pattern(secret: str) -> re.Pattern[str]:
    pattern = "".join(_written(secret))
    if len(secret) < SHORT or secret.isalpha():
        before = _BESIDE_NO_WORD if re.match(r"\w", secret) else ""
        after = r"(?!\w)" if re.search(r"\w\Z", secret) else ""
        pattern = f"{before}{pattern}{after}"
    return re.compile(pattern)


def _written(secret: str) -> Iterator[str]:
    """Yield a pattern for each character or run of backslashes, in all its encodings."""
    for character, run in groupby(secret):
        count = len(list(run))
        one = rf"(?:{'|'.join(_ways_to_write(character))})"
        if character == "\\":
            # Every level of escaping doubles backslashes.
            yield rf"(?:{one}{{{count}}}|\\{{{count},{8 * count}}})"
        else:
            yield one * count


def _ways_to_write(character: str) -> Iterator[str]:
    code = ord(character)
    octets = character.encode("utf-8", "surrogateescape")
    # Short encodings come last: the first match wins, and a short one would leave a rest behind.
    yield "(?i:" + "".join(f"%(?:25){{0,2}}{octet:02x}" for octet in octets) + ")"
    if character == " ":
        yield r"\+"
    if character in _NAMED_ESCAPES:
        yield rf"\\{{1,8}}{_NAMED_ESCAPES[character]}"
    yield "".join(rf"\\{{1,8}}x(?i:{octet:02x})" for octet in octets)
    if code < 0x100:
        yield rf"\\{{1,8}}x(?i:{code:02x})"
    units = character.encode("utf-16-be", "surrogatepass").hex()
    yield "".join(rf"\\{{1,8}}u(?i:{units[at : at + 4]})" for at in range(0, len(units), 4))
    yield rf"\\{{1,8}}U(?i:{code:08x})"
    yield f"&#0*{code};|&#(?i:x0*{code:x});"
    if code in codepoint2name:
        yield f"&{codepoint2name[code]};"
    if character == "'":
        yield "&apos;"
    if character != "\\":
        yield rf"\\{{0,8}}{re.escape(character)}"
