"""The command that tries out the alert settings: `alert-test`."""

from __future__ import annotations

import click

from mcq_analytics.cli.options import verbose_option
from mcq_analytics.settings import load_settings


@click.command("alert-test")
@verbose_option
def alert_test() -> None:
    """Send a test message the way alerts are sent. Fails unless it was accepted."""
    from mcq_analytics.alerting.send import send_alert  # noqa: PLC0415

    alerts = load_settings().alerts
    send_alert("this is a test: alerts of mcq_analytics reach you here", alerts)
    click.echo(f"sent by {alerts.method}")
