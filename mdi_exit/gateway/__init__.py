"""The way in for people and programs without MQTT: an HTTP gateway and the live page."""
