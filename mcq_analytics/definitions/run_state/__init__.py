"""What Dagster records of runs: in progress, ended and how, alive or dead."""
