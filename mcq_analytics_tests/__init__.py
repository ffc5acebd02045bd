"""The tests. Real PostgreSQL, real Spark, real Dagster; `recompute` is what facts are held against."""
