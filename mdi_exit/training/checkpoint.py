"""Checkpoints: written whole or not at all, read without running code, gone on from only for the same purpose."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from mdi_exit.errors import MdiExitError, UsageError

__all__ = ["read_checkpoint", "write_checkpoint"]


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Replace the file in one step, so that a kill leaves the old one or the new one. Raises ``MdiExitError``."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise MdiExitError(f"checkpoint {path}: {error.strerror or error}") from None


def read_checkpoint(path: Path, purpose: dict[str, Any]) -> dict[str, Any]:
    """The state in ``path``; empty if there is none, or one that was saved for another ``purpose``.

    Raises ``UsageError`` for a file that is no checkpoint.
    """
    if not path.exists():
        return {}
    try:
        saved = torch.load(path, weights_only=True, map_location="cpu")
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UsageError(f"checkpoint {path}", "one of an earlier run (remove it to start anew)", reason) from None
    return saved if isinstance(saved, dict) and saved.get("purpose") == purpose else {}
