"""Spoken words from a folder, in the layout of Speech Commands (arXiv 1804.03209): ``WORD/SPEAKER_nohash_N.wav``.

One folder has two sets of labels: what is said (``wav:DIR``), and by whom (``voices:DIR``). Both give the same clips in the
same order, so that a split by one seed is the same for both. Any other names of files will do for the words.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from mdi_exit.data.sets import Dataset, Parts
from mdi_exit.data.sound import Clip, read_wav
from mdi_exit.errors import UsageError

__all__ = ["SPEAKER_MARK", "SPEECH_SETS", "from_wavs", "read_clip", "speaker_of", "wavs_in"]

SPEAKER_MARK: Final = "_nohash_"
SPEECH_SETS: Final = ("wav", "voices")
_NOISE: Final = "_background_noise_"  # Speech Commands has a folder of it, which is no word


def from_wavs(place: Path, labels: str = "wav", read: Parts | None = None) -> Parts:
    """``WORD/…wav``, or ``train/WORD/…`` and ``test/WORD/…``. ``labels``: one of ``SPEECH_SETS``. ``read``: the same folder
    with its other labels, so that no clip is read again. Raises ``UsageError``.
    """
    root = place.expanduser()
    if not root.is_dir():
        raise UsageError(f"data {labels}:{place}", "a folder", "none" if not root.exists() else "a file")
    train, test = root / "train", root / "test"
    known = read or (None, None)
    if not train.is_dir():
        return _read(root, labels, _names(root, labels), known[0]), None
    names = _names(train, labels)
    return _read(train, labels, names, known[0]), _read(test, labels, names, known[1]) if test.is_dir() else None


def wavs_in(root: Path) -> list[Path]:
    """In the order of their names; hidden ones and recordings of mere noise left out."""
    return sorted(
        path for path in root.rglob("*")
        if path.suffix.lower() == ".wav" and path.is_file()
        and not any(part.startswith(".") or part == _NOISE for part in path.relative_to(root).parts)
    )  # fmt: skip


def speaker_of(path: Path) -> str | None:
    """Who speaks, if the file's name says so."""
    name, mark, _ = path.stem.partition(SPEAKER_MARK)
    return name if mark and name else None


def read_clip(path: Path) -> Clip:
    """Raises ``UsageError``."""
    try:
        return read_wav(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"data file {path}", "a readable WAV file", error) from None


def _label(root: Path, path: Path, labels: str) -> str | None:
    return speaker_of(path) if labels == "voices" else path.relative_to(root).parts[0]


def _names(root: Path, labels: str) -> tuple[str, ...]:
    found = {_label(root, path, labels) for path in wavs_in(root) if len(path.relative_to(root).parts) > 1}
    if not found or None in found:
        expected = "WORD/…wav" if labels == "wav" else f"WORD/SPEAKER{SPEAKER_MARK}N.wav for each file"
        raise UsageError(f"data {labels}:{root}", expected, "other names" if found else "no such file")
    return tuple(sorted(name for name in found if name is not None))


def _read(root: Path, labels: str, names: tuple[str, ...], read: Dataset | None) -> Dataset:
    paths = [path for path in wavs_in(root) if len(path.relative_to(root).parts) > 1]
    numbers = {name: number for number, name in enumerate(names)}
    found = [_label(root, path, labels) for path in paths]
    if strange := sorted({str(name) for name in found if name not in numbers}):
        raise UsageError(f"data {labels}:{root}", "the labels of the training part", ", ".join(strange[:3]))
    labels_N = np.array([numbers[name] for name in found if name is not None], np.int64)
    items = tuple(read_clip(path) for path in paths) if read is None else read.items
    if len(items) != len(paths):
        raise UsageError(f"data {labels}:{root}", "a folder that stays as it is", "files that came or went")
    return Dataset(labels, items, labels_N, names, np.arange(len(paths), dtype=np.int64))
