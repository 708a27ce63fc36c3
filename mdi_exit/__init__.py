"""Early-exit, model-distributed inference over MQTT."""

__all__ = ["__version__"]

__version__ = "0.1.0"
