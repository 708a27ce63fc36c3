"""Named arrays and a few words about them in one ``.npz`` file; nothing is ever unpickled."""

from __future__ import annotations

import json
import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from mdi_exit.errors import MdiExitError, UsageError
from mdi_exit.limits import MAX_ARRAYS_BYTES

__all__ = ["axes_of", "read_arrays", "read_record", "write_record"]

_ABOUT: Final = "about"

_UNREADABLE: Final = (
    *(OSError, ValueError, EOFError, NotImplementedError, KeyError, RuntimeError, struct.error),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, MemoryError),
)

Arrays = dict[str, NDArray[Any]]


def read_arrays(path: Path, what: str) -> Arrays:
    """All arrays of an ``.npz`` file. Raises ``UsageError``."""
    try:
        with path.open("rb") as stream:
            return _read(stream, path, what)
    except _UNREADABLE as error:
        reason = "pickled objects" if "pickle" in str(error) else (str(error).splitlines() or ["an empty file"])[0]
        raise UsageError(f"{what} {path}", "a readable .npz file of plain arrays", reason) from None


def _read(stream: BinaryIO, path: Path, what: str) -> Arrays:
    file = np.load(stream, allow_pickle=False)
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise UsageError(f"{what} {path}", "an .npz file", "a single array")
    with file:
        _check_sizes(file.zip, path, what)
        return {name: file[name] for name in file.files}


def _check_sizes(archive: zipfile.ZipFile | None, path: Path, what: str) -> None:
    """Memory is given to an array by what its header says: it may not say more than the file holds. Raises ``UsageError``."""
    if archive is None:
        return  # closed: nothing will be read
    if (whole := sum(member.file_size for member in archive.infolist())) > MAX_ARRAYS_BYTES:
        raise UsageError(f"{what} {path}", f"at most {MAX_ARRAYS_BYTES:,} bytes of arrays", f"{whole:,}")
    for member in archive.infolist():
        with archive.open(member) as stream:
            version = np.lib.format.read_magic(stream)
            read_header = (
                np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = read_header(stream)
        if not dtype.hasobject and math.prod(shape) * dtype.itemsize > member.file_size:
            raise UsageError(
                f"{what} {path}: {member.filename}", f"an array of {member.file_size:,} bytes", "a larger one"
            )


def write_record(path: Path, about: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """``about`` (JSON) and ``arrays``, compressed. Raises ``MdiExitError``."""
    text = np.array(json.dumps(about, ensure_ascii=False, sort_keys=True))
    try:
        with path.open("wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, about=text, **arrays)
    except OSError as error:
        raise MdiExitError(f"could not write {path}: {error.strerror or error}") from None


def axes_of(name: str) -> str:
    """The letters of an array's axes, behind the last underscore of its name."""
    return name.rpartition("_")[2]


def read_record(path: Path, what: str, form: str, names: Iterable[str]) -> tuple[dict[str, Any], Arrays]:
    """What ``write_record`` wrote, ``about["form"]`` being ``form`` and each array of ``names`` there with its axes, of which
    those of the same letter are of the same length.

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
    sizes: dict[str, int] = {}
    for name in names:
        axes = axes_of(name)
        if name not in arrays or arrays[name].ndim != len(axes):
            raise UsageError(f"{what} {path}", f"array {name} with {len(axes)} axes", "none or another")
        shape = arrays[name].shape
        expected = tuple(sizes.setdefault(letter, size) for letter, size in zip(axes, shape, strict=True))
        if shape != expected:
            raise UsageError(f"{what} {path}: {name}", f"shape {expected}", shape)
    return about, arrays
