"""Scenarios tried out: simulated, or live on an emulated testbed."""
