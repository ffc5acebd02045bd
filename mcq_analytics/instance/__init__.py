"""The Dagster instance: `dagster.yaml`, and the classes that it names."""
