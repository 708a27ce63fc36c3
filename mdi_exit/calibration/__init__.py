"""Temperatures, reliability, thresholds with a promise or under a budget: arithmetic on outcomes, no model is run."""
