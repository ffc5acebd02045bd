"""Parsing times: only ISO 8601, the same on every Python, rounded as PostgreSQL rounds."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import pytest

from mcq_analytics.errors import UsageError
from mcq_analytics.model.windows import parse_time, parse_timestamp
from mcq_analytics.postgres.database import Database
from mcq_analytics_tests.facts_of import scalar

PARSERS = pytest.mark.parametrize("parse", [parse_time, parse_timestamp])


@PARSERS
@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2023-08-08T12:00", "2023-08-08 12:00:00+00:00"),
        ("2023-08-08 12:00:01", "2023-08-08 12:00:01+00:00"),
        ("2023-08-08t12:00:01z", "2023-08-08 12:00:01+00:00"),
        ("2023-08-08T12:00:01.5Z", "2023-08-08 12:00:01.500000+00:00"),
        ("2023-08-08T12:00:01,25", "2023-08-08 12:00:01.250000+00:00"),
        ("2023-08-08T12:00+05:30", "2023-08-08 06:30:00+00:00"),
        ("2023-08-08 12:00:00-0530", "2023-08-08 17:30:00+00:00"),
        ("2023-08-08T01:00+02", "2023-08-07 23:00:00+00:00"),
        ("20230808T1200", "2023-08-08 12:00:00+00:00"),
        ("20230808T120001Z", "2023-08-08 12:00:01+00:00"),
        ("20230808t120001,123456+0100", "2023-08-08 11:00:01.123456+00:00"),
        ("2024-02-29T23:59:59.9999996", "2024-03-01 00:00:00+00:00"),
        ("0001-01-01T00:00", "0001-01-01 00:00:00+00:00"),
    ],
)
def test_a_date_with_a_time_is_read_in_utc(
    parse: Callable[[str], datetime], text: str, moment: str
) -> None:
    assert str(parse(text)) == moment


@PARSERS
@pytest.mark.parametrize(
    "text",
    [
        "20230808120000Z",
        "20230808 120000",
        "1706110312345",
        "1706110312",
        "20240131",
        "2024-031T09:00",
        "2024-W05-3T09:00",
        "2024W053T0900",
        "2024-01-31T0900",
        "20240131T09:00",
        "2024-01-31T24:00",
        "2024-01-31T09:60",
        "2024-01-31T23:59:60",
        "2024-02-30T09:00",
        "0000-01-01T00:00",
        "2024-01-31_09:00",
        "2024-01-31  09:00",
        "2024-01-31T09:00.5",
        "2024-01-31T09:00:00.",
        "2024-01-31T09:00:00 Z",
        "2024-01-31T09:00Zulu",
        "2024-01-31T09:00+1",
        "2024-01-31T09:00+01:60",
        "2024-01-31T09:00+24:00",
        "2024-01-31T09:00+01:00:00",
        "at 2024-01-31T09:00",
        "2024-01-31T09:00 or so",
        "\u0662\u0660\u0662\u0664-01-31T09:00",
        "2024-01-31T09:00:00.\u0661",
        "2024-01-31T09:00\u2028",
        "",
        "now",
    ],
)
def test_any_other_text_is_refused_and_quoted(parse: Callable[[str], datetime], text: str) -> None:
    with pytest.raises(UsageError, match="is not an ISO 8601 time") as caught:
        parse(text)
    assert str(caught.value).startswith(repr(text))


@PARSERS
def test_a_moment_beyond_the_years_1_to_9999_is_refused(
    parse: Callable[[str], datetime],
) -> None:
    for text in ("0001-01-01T00:00+01", "9999-12-31T23:00-01", "9999-12-31T23:59:59.9999999"):
        with pytest.raises(UsageError, match="out of range"):
            parse(text)


def test_only_the_command_line_accepts_a_date_or_hour_without_minutes() -> None:
    for text in ("2024-01-31", "2024-01-31T00", "2024-01-31 00Z"):
        assert str(parse_time(text)) == "2024-01-31 00:00:00+00:00"
        with pytest.raises(UsageError, match="is not an ISO 8601 time"):
            parse_timestamp(text)


def test_digits_beyond_microseconds_are_rounded_as_the_server_rounds_them(
    database: Database,
) -> None:
    for fraction in (
        *("0000004", "0000005", "0000006", "0000015", "0000025", "1234565", "1234575"),
        *("12345649999999999", "5000005", "999999499", "9999995", "9999999"),
    ):
        text = f"2024-12-31T23:59:59.{fraction}Z"
        assert parse_timestamp(text) == scalar(database, f"SELECT '{text}'::timestamptz"), text


def test_a_long_text_is_cut_in_the_error() -> None:
    with pytest.raises(UsageError, match="is not an ISO 8601 time") as caught:
        parse_timestamp("9" * 100_000)
    assert len(str(caught.value)) < 200
