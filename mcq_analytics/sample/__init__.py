"""Filling the base tables for development and tests: a generated sample, and CSV files."""
