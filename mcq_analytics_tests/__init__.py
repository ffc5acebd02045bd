"""The tests: real PostgreSQL, Spark and Dagster. `recompute` is what facts are held against."""
