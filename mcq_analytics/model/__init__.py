"""Facts, windows and base tables as plain data. No database, no Spark, no Dagster."""
