"""Are the facts right, and how far are they? Audits, late data, corrections, rescore, status."""
