"""Computing a fact over a window: the attempt, and its lock, staging, inputs, SQL and upsert."""
