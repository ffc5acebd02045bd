"""Masking: secrets are blotted out in every encoding, and nothing else is."""

from __future__ import annotations

import html
import json
import re
from traceback import TracebackException
from urllib.parse import quote, quote_plus

import pytest
from dagster_shared.error import SerializableErrorInfo
from hypothesis import example, given
from hypothesis import strategies as st
from psycopg2.extensions import make_dsn
from sqlalchemy.exc import OperationalError

from mcq_analytics import masking
from mcq_analytics.errors import McqError
from mcq_analytics.masking import mask, remember, without_secrets
from mcq_analytics.postgres.errors import explain, explaining, first_line, in_short
from mcq_analytics.settings import load_settings
from mcq_analytics_tests.test_urls import ODD, texts


def ways_to_write(secret: str) -> list[str]:
    encoded = [
        *(quote(secret, safe=safe) for safe in ("", "/", " +")),
        quote_plus(secret),
        quote(quote(secret, safe=""), safe=""),
    ]
    escaped = [
        secret,
        secret.replace("\\", "\\\\").replace("'", "\\'"),
        make_dsn(password=secret).removeprefix("password="),
        *(write(secret)[1:-1] for write in (repr, ascii, json.dumps)),
        json.dumps(secret, ensure_ascii=False)[1:-1],
        json.dumps(repr(secret)[1:-1])[1:-1],
        repr(secret.encode())[2:-1],
        html.escape(secret),
        secret.encode("ascii", "xmlcharrefreplace").decode(),
    ]
    lower = [re.sub(r"%[0-9A-F]{2}", lambda found: found[0].lower(), one) for one in encoded]
    return [*encoded, *lower, *escaped]


@given(texts.map(str.strip).filter(bool))
@example(ODD)
@example("it's \"quoted\\'")
@example("&")
@example("%")
@example("\\")
@example("\\x5c\\")
def test_a_secret_is_blotted_out_in_every_encoding(secret: str) -> None:
    masking._remembered.clear()
    remember(secret)
    for written in ways_to_write(secret):
        # Control characters as delimiters: no generated secret has one.
        shown = mask(f"\x01{written}\x02")
        assert re.fullmatch(r"\x01['\"]?(\*\*\*)+['\"]?\x02", shown), written


@given(st.text(st.sampled_from("mcq%\\'&x5 "), min_size=1, max_size=40))
def test_masking_ends_and_masking_again_changes_nothing(text: str) -> None:
    masking._remembered.clear()
    remember("mcq\\\\\\'&%", "5\\x\\m ", text)
    assert mask(mask(text * 20)) == mask(text * 20)


def test_a_secret_that_is_a_common_word_is_masked_only_as_a_whole_word() -> None:
    remember("mcq", "postgres", "hunters")
    text = "postgresql: mcq_analytics reads mcq of postgres for hunters and headhunters"
    assert mask(text) == "postgresql: mcq_analytics reads *** of *** for *** and headhunters"


def test_text_in_the_place_of_a_password_is_blotted_out_although_never_remembered() -> None:
    for text, shown in (
        ("postgresql://u:p@Sup3r@host/db", "postgresql://u:***@host/db"),
        ("user=u password='p w\\'x' host=h", "user=u password=*** host=h"),
        ("?sslmode=require&sslpassword=p%20w&user=u", "?sslmode=require&sslpassword=***&user=u"),
    ):
        assert mask(text) == shown


def test_every_secret_in_the_settings_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    hook = "https://hooks.slack.com/services/T000/B000/s3cret-h00k"
    for name, value in {
        "DB_DEV_URL": "postgresql://u:dev%20p4ss@h/d?sslpassword=k3y-p4ss",
        "MCQ_DAGSTER_URL": "postgresql:///d?password=dagster+p4ss",
        "SLACK_WEBHOOK_URL": hook,
        "SLACK_TOKEN": "xoxb-t0ken",
        "SMTP_PASSWORD": "m4il p4ss",
        "DB_TEST_PASSWORD": "t3st p@ss%20",
        "DB_PROD_PASSWORD": "pr0d p@ss%20",
        "MCQ_DAGSTER_PASSWORD": "d4gster p@ss%20",
    }.items():
        monkeypatch.setenv(name, value)
    load_settings()
    path = hook.partition(".com/")[2]
    for secret in ("dev p4ss", "k3y-p4ss", "dagster p4ss", hook, path, "s3cret-h00k", "xoxb-t0ken"):
        assert mask(f"<{secret}>") == "<***>"
    for secret in ("m4il p4ss", "t3st p@ss%20", "pr0d p@ss%20", "d4gster p@ss%20"):
        assert mask(f"<{secret}>") == "<***>"


def failure_with(text: str) -> OperationalError:
    return OperationalError("SELECT 1", {}, Exception(text))


def test_error_messages_are_masked() -> None:
    remember("p w%@'x")
    error = failure_with("the server says\nERROR:  p%20w%25%40%27x is no name, nor is p w%@'x")
    for told in (first_line(error), in_short(error), str(explain(error, "reading"))):
        assert "***" in told or "the server says" in told
        assert "p w" not in told
        assert "p%20w" not in told
        assert "\n" not in told
    assert str(explain(McqError("p w%@'x is wrong"), "reading")) == "*** is wrong"


def test_the_causes_of_errors_that_dagster_records_are_masked() -> None:
    secret = "p w%@'x"
    remember(secret)

    def recorded(kinds: tuple[type[Exception], ...], raised: Exception) -> str:
        with pytest.raises(McqError) as failure, explaining("reading", *kinds):
            try:
                raise ValueError(f"deep: {quote(secret)}")
            except ValueError as cause:
                raise raised from cause
        trace = TracebackException.from_exception(failure.value)
        return SerializableErrorInfo.from_traceback(trace).to_string()

    for raised in (failure_with("refused: p w%@'x"), failure_with("refused"), McqError("refused")):
        told = recorded((OperationalError,), raised)
        assert "deep: ***" in told
        assert "refused" in told
        assert "p w%@" not in told
        assert "p%20w" not in told
    clean = ValueError("nothing secret")
    assert without_secrets(clean) is clean
