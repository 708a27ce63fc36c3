"""DAISY (arXiv 2406.05464): self-supervised speech encoders whose own entropy says where to leave."""
