"""What carries messages: MQTT, or a broker in memory for tests, behind one protocol."""

from mdi_exit.transport.base import Handler, Transport, TransportCounters, Will, topic_matches

__all__ = ["Handler", "Transport", "TransportCounters", "Will", "topic_matches"]
