"""The command line, `mcq-analytics`: one module per group of commands.

Modules import what is slow (Dagster, Spark, SQLAlchemy) inside the commands that need it, so that
the other commands start at once. The work itself is done in `launching`, `quality` and `sample`.
"""
