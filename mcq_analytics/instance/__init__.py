"""The Dagster instance: where it keeps its records and files, and its settings."""
