"""Whether the facts are right and up to date: audits, late data, corrections, rescore, status."""
