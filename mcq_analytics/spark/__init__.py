"""The Spark session and how it reads and writes PostgreSQL. What is computed is in `transforms`."""
