"""PostgreSQL: connections, our schema and its records, and what the server's errors mean."""
