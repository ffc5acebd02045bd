"""PostgreSQL and Spark: what is read, how it is kept, and the session that computes it.

Dagster is not known here; the definitions of the facts are in `mcq_analytics.transforms`.
"""
