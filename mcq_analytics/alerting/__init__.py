"""When failures become an incident, and how a message is sent."""
