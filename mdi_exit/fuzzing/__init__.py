"""Fuzzing of everything that reads bytes from outside: ``mdi-exit benchmark fuzz``."""
