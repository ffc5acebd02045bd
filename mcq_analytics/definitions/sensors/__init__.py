"""The sensors: late data, recovery and alerts."""
