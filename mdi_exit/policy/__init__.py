"""The policies: plain functions over plain numbers, one file each, swappable by name."""
