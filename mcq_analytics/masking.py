"""No secret is shown: what is one is remembered here, and blotted out of texts and errors.

Which settings are secrets is in `settings` and `database_urls`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from html.entities import codepoint2name
from itertools import groupby

BLOT = "***"
SHORT = 8
"""A secret of fewer characters is blotted out as a whole word only."""

_remembered: set[str] = set()

# Of `postgresql://user:password@host`, as errors show how to write it, nothing is a secret.
_URL_PASSWORD = re.compile(r"(://[^:/@\s]*):(?!password@host)\S*@")
_PASSWORD_PAIR = re.compile(
    r"\b((?:ssl)?password=)(?:'(?:[^'\\]|\\.)*'|\"[^\"]*\"|[^\s&,;)\]}'\"]+)", re.IGNORECASE
)
_NAMED_ESCAPES = {"\n": "n", "\r": "r", "\t": "t", "\b": "b", "\f": "f"}
_BESIDE_NO_WORD = r"(?:(?<!\w)|(?<=\\[nrtbf])|(?<=%[0-9A-Fa-f]{2}))"


def remember(*secrets: str | None) -> None:
    """Note secrets, which `mask` blots out from then on in this process."""
    _remembered.update(secret for secret in secrets if secret)


def mask(text: str) -> str:
    """Return `text` with every secret blotted out, in whatever way it is written there.

    Found are a remembered secret as it is, percent-encoded, with escapes of conninfo strings,
    Python or JSON, and as HTML, in any mixture; and what a URL or a `password=` pair gives as a
    password, remembered or not. A secret that is shorter than `SHORT` characters or consists of
    letters alone is blotted out only where no other word character is beside it: a password `mcq`
    leaves `mcq_analytics` readable.
    """
    # What is blotted out may leave a word by itself that was a part of one before.
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
    """Stands for an error whose text held a secret: the name of its class, and its masked text."""


def without_secrets(error: BaseException) -> BaseException:
    """Return the error, or one in its place where its text holds a secret; its causes likewise.

    Dagster records an error with all of its causes.
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
    """Return a pattern for each secret; the longest first, of which another may be a part."""
    return [_pattern(secret) for secret in sorted(secrets, key=lambda one: (-len(one), one))]


def _pattern(secret: str) -> re.Pattern[str]:
    pattern = "".join(_written(secret))
    if len(secret) < SHORT or secret.isalpha():
        before = _BESIDE_NO_WORD if re.match(r"\w", secret) else ""
        after = r"(?!\w)" if re.search(r"\w\Z", secret) else ""
        pattern = f"{before}{pattern}{after}"
    return re.compile(pattern)


def _written(secret: str) -> Iterator[str]:
    """Yield a pattern for each character, or run of backslashes, with all ways to write it."""
    for character, run in groupby(secret):
        count = len(list(run))
        one = rf"(?:{'|'.join(_ways_to_write(character))})"
        if character == "\\":
            # Each escaping of the text doubles them.
            yield rf"(?:{one}{{{count}}}|\\{{{count},{8 * count}}})"
        else:
            yield one * count


def _ways_to_write(character: str) -> Iterator[str]:
    code = ord(character)
    octets = character.encode("utf-8", "surrogateescape")
    # Short ways come last: the first that matches is taken, and would leave the rest of another.
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
