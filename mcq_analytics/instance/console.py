"""How lines of log look in the processes of Dagster: with their time and logger, as its own do."""

from __future__ import annotations

import logging

_FORMAT = "%(asctime)s - %(name)s - %(levelname)s - %(message)s"
_DATE_FORMAT = "%Y-%m-%d %H:%M:%S %z"


def name_and_date_lines() -> None:
    """Let warnings of ours and of libraries be printed so, where nothing else is set up."""
    if logging.root.handlers:
        return
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter(_FORMAT, _DATE_FORMAT))
    # Dagster prints its own.
    handler.addFilter(lambda record: not record.name.startswith(("dagster", "dagit")))
    logging.root.addHandler(handler)
