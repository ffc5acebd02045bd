"""Runs the command line for `python -m mcq_analytics`."""

from mcq_analytics.cli.app import main

if __name__ == "__main__":
    main()
