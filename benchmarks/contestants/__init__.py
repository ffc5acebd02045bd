"""The contestants: each computes the same three facts in the measured database."""
