"""Runs and ticks as Dagster records them: in progress, failed and why, alive or dead."""
