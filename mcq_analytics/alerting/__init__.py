"""Alerts: when failures become an incident, what messages say, and how they are sent."""
