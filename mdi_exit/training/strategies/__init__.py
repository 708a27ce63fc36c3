"""How a network and its exits learn: one file a strategy, each a sequence of phases for the one loop."""
