"""Discrete-event simulation of the same states that run live."""

from mdi_exit.simulation.network import SimulatedNetwork, SimulatedNode

__all__ = ["SimulatedNetwork", "SimulatedNode"]
