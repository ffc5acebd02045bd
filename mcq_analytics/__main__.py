"""`python -m mcq_analytics` is the command line."""

from mcq_analytics.cli.app import main

if __name__ == "__main__":
    main()
