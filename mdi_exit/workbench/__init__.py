"""Tools that make an artifact better before it is deployed."""
