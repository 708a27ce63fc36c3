"""Training of multi-exit networks (needs the extra ``torch``)."""
