"""Named arrays and a few words about them in one ``.npz`` file; nothing is ever unpickled."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from mdi_exit.errors import MdiExitError, UsageError

__all__ = ["read_arrays", "read_record", "write_record"]

_ABOUT: Final = "about"

Arrays = dict[str, NDArray[Any]]


def read_arrays(path: Path, what: str) -> Arrays:
    """All arrays of an ``.npz`` file. Raises ``UsageError``."""
    try:
        with path.open("rb") as stream:
            return _read(stream, path, what)
    except (OSError, ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        reason = "pickled objects" if "pickle" in str(error) else (str(error).splitlines() or ["an empty file"])[0]
        raise UsageError(f"{what} {path}", "a readable .npz file of plain arrays", reason) from None


def _read(stream: BinaryIO, path: Path, what: str) -> Arrays:
    file = np.load(stream, allow_pickle=False)
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise UsageError(f"{what} {path}", "an .npz file", "a single array")
    with file:
        return {name: file[name] for name in file.files}


def write_record(path: Path, about: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """``about`` (JSON) and ``arrays``, compressed. Raises ``MdiExitError``."""
    text = np.array(json.dumps(about, ensure_ascii=False, sort_keys=True))
    try:
        with path.open("wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, about=text, **arrays)
    except OSError as error:
        raise MdiExitError(f"could not write {path}: {error.strerror or error}") from None


def read_record(path: Path, what: str, form: str, dims: Mapping[str, int]) -> tuple[dict[str, Any], Arrays]:
    """What ``write_record`` wrote, ``about["form"]`` being ``form`` and each array of ``dims`` there with so many axes.

    Raises ``UsageError``.
    """
    arrays = read_arrays(path, what)
    try:
        about = json.loads(str(arrays.pop(_ABOUT)))
    except (KeyError, ValueError):
        about = None
    got = about.get("form") if isinstance(about, dict) else None
    if got != form:
        raise UsageError(f"{what} {path}", f"form {form}", repr(got) if got else "another file")
    wrong = [name for name, count in dims.items() if name not in arrays or arrays[name].ndim != count]
    if wrong:
        raise UsageError(f"{what} {path}", f"array {wrong[0]} with {dims[wrong[0]]} axes", "none or another")
    return about, arrays
