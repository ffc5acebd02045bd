"""The format of log lines in Dagster's processes: like Dagster's own, with time and logger."""

from __future__ import annotations

import logging

_FORMAT = "%(asctime)s - %(name)s - %(levelname)s - %(message)s"
_DATE_FORMAT = "%Y-%m-%d %H:%M:%S %z"


def set_up_log_lines() -> None:
    """Print warnings of ours and of libraries in Dagster's format, unless logging is set up."""
    if logging.root.handlers:
        return
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter(_FORMAT, _DATE_FORMAT))
    # Dagster prints its own lines.
    handler.addFilter(lambda record: not record.name.startswith(("dagster", "dagit")))
    logging.root.addHandler(handler)
