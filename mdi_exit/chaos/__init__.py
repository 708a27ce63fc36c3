"""Faults on purpose: a proxy that troubles MQTT connections, a schedule, what it does to real processes, and the verdict."""
