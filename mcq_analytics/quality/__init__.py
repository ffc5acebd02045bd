"""Whether the facts are right and how far they are: audits, corrections, rescore, status."""
