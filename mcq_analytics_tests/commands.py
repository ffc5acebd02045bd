"""Calling commands of `mcq-analytics` in this process, and checking how they fail."""

from __future__ import annotations

import click.testing

from mcq_analytics.cli.app import main


def call(*arguments: str) -> click.testing.Result:
    """Run a command in this process."""
    return click.testing.CliRunner().invoke(main, list(arguments))


def fails(result: click.testing.Result, code: int, *parts: str) -> None:
    """Check that a command failed with one line on stderr that has all the parts."""
    assert result.exit_code == code, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    for part in parts:
        assert part in lines[0], lines[0]
    assert "Traceback" not in result.output
