"""The command line, `mcq-analytics`: one module per group of commands."""
