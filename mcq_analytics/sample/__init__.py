"""Fills the base tables for development and tests: generated samples and CSV files."""
