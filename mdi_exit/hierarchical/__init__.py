"""Hierarchical training over MQTT (Sepehri et al., arXiv 2303.02384): edges learn the first layers, a cloud the rest."""
