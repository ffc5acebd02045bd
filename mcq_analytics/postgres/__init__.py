"""PostgreSQL: connections, our schema, `etl_metadata`, base tables, and the server's errors."""
