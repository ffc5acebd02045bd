"""Running facts from outside Dagster's daemon: in this process, as a backfill, and the UI."""
