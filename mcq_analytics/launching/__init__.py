"""Starts computations from the command line: in this process, as a backfill, or with the UI."""
