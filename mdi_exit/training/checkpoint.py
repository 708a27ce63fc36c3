"""Files written whole or not at all. Checkpoints: read without running code, gone on from only for the same purpose."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from mdi_exit.errors import MdiExitError, UsageError

__all__ = ["read_checkpoint", "write_checkpoint", "write_text"]


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Replace the file in one step. Raises ``MdiExitError``."""
    _write("checkpoint", path, lambda file: torch.save(state, file))


def write_text(what: str, path: Path, text: str) -> None:
    """Replace the file ``path``, ``what`` to a user, in one step. Raises ``MdiExitError``."""
    _write(what, path, lambda file: file.write(text.encode()))


def _write(what: str, path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """A kill leaves the old file or the new one."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise MdiExitError(f"{what} {path}: {error.strerror or error}") from None


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
