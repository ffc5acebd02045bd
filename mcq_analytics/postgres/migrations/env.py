"""Alembic's entry point: runs the migrations on the connection that `postgres.schema` passes."""

from __future__ import annotations

from alembic import context

attributes = context.config.attributes
context.configure(
    connection=attributes["connection"],
    version_table="alembic_version",
    version_table_schema=attributes["schema"],
)
with context.begin_transaction():
    context.run_migrations()
