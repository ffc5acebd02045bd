"""Measurements: `make bench` compares the project with its peers; scripts look at one thing."""
