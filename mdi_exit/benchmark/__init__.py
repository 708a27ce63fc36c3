"""Measurements that name what they measure: relays without this project as the measure of its hop."""
