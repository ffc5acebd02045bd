"""The sensors: late data, recovery and alerts. The schedule is in `schedules`."""
