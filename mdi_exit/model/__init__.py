"""Models: multi-exit networks, their export, and the artifact that carries them."""
