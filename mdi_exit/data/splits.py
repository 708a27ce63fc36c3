"""Training, calibration and test samples of a data set, fixed by a seed and told apart for good.

============================  =======================================================================================
data set                      split
============================  =======================================================================================
with a test part of its own   that is the test part; calibration samples are drawn from the rest by seed
without one                   a fifth is drawn for testing first, then calibration samples
``NAME/test``                 only the test part of NAME: half (or as asked) for calibration, the rest for testing, none
                              for training. For a model that was trained on all of the training part
============================  =======================================================================================
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from mdi_exit.data.composite import COMPOSITE, PHOTOGRAPHS, composite
from mdi_exit.data.given import from_folder, from_npz
from mdi_exit.data.sets import DATASETS, Dataset, Parts, load, shipped
from mdi_exit.data.sound import Clip
from mdi_exit.data.speech import SPEECH_SETS, from_wavs
from mdi_exit.data.texts import TEXT_SETS, from_text, read_text_set
from mdi_exit.errors import UsageError
from mdi_exit.model.manifest import DataRecord

__all__ = ["IMAGE_SPECS", "SPECS", "Splits", "splits"]

IMAGE_SPECS: Final = (*DATASETS, "shipped", COMPOSITE, "NAME/test", "folder:PATH", "npz:FILE")
SPECS: Final = (*IMAGE_SPECS, "text:FILE", *TEXT_SETS, "wav:DIR", "voices:DIR")
_TEST_SHARE: Final = 5
_CALIBRATION_SHARE: Final = 10
_CALIBRATION_MOST: Final = 5000
_TEST_ONLY: Final = "/test"


@dataclass(frozen=True, slots=True)
class Splits:
    """Three parts without a sample in common; each keeps the order of the data set. ``train`` may be empty."""

    train: Dataset
    calibration: Dataset
    test: Dataset
    record: DataRecord


def splits(
    spec: str,
    *,
    seed: int = 0,
    data_dir: Path | None = None,
    calibration: int | None = None,
    shape: tuple[int, ...] | None = None,
    read: Parts | None = None,
) -> Splits:
    """The split of ``spec`` (see ``SPECS``) by ``seed``; the same arguments give the same samples again.

    ``calibration``: how many samples (None: a tenth of those not for testing, at most 5,000). ``shape`` (C, H, W): for a
    folder of images of many sizes, what they are made to be. ``read``: what ``spec`` names, if it has been read.
    Raises ``UsageError``.
    """
    if not 0 <= seed < 2**63:
        raise UsageError("seed", "a number from 0 to 2⁶³ - 1", seed)
    rng = np.random.default_rng(seed)
    rest, test, most = _parts(spec, data_dir, shape, rng, read)
    size = most if calibration is None else calibration
    if not 0 < size < len(rest):
        raise UsageError(f"calibration samples of {spec}", f"1 to {len(rest) - 1}", size)
    order = rng.permutation(len(rest))
    taken, left = rest.subset(np.sort(order[:size])), rest.subset(np.sort(order[size:]))
    train, test = (left.subset(np.arange(0)), left) if test is None else (left, test)
    record = DataRecord(
        spec=spec,
        seed=seed,
        train=len(train),
        calibration=len(taken),
        test=len(test),
        sha256=_digest((train, taken, test)),
    )
    return Splits(train, taken, test, record)


def _parts(
    spec: str, data_dir: Path | None, shape: tuple[int, ...] | None, rng: np.random.Generator, read: Parts | None
) -> tuple[Dataset, Dataset | None, int]:
    """Samples to draw from, the test part (None: what the draw leaves), and how many to draw unless told."""
    if spec.endswith(_TEST_ONLY) and (name := spec.removesuffix(_TEST_ONLY)) in DATASETS:
        pool = load(name, "test", data_dir)
        return pool, None, len(pool) // 2
    whole, test = read or _read(spec, data_dir, shape)
    if test is None:
        order = rng.permutation(len(whole))
        count = len(whole) // _TEST_SHARE
        test, whole = whole.subset(np.sort(order[:count])), whole.subset(np.sort(order[count:]))
    return whole, test, min(len(whole) // _CALIBRATION_SHARE, _CALIBRATION_MOST)


def _read(spec: str, data_dir: Path | None, shape: tuple[int, ...] | None) -> Parts:
    kind, _, place = spec.partition(":")
    if spec == "shipped":
        return shipped(), None
    if spec in DATASETS:
        return load(spec, "train", data_dir), load(spec, "test", data_dir)
    if kind == COMPOSITE:
        return composite(data_dir, Path(place).expanduser() if place else PHOTOGRAPHS)
    if kind == "folder" and place:
        return from_folder(Path(place), shape)
    if kind == "npz" and place:
        return from_npz(Path(place))
    if kind == "text" and place:
        return _labelled(spec, from_text(Path(place)))
    if kind in SPEECH_SETS and place:
        return from_wavs(Path(place), kind)
    if spec in TEXT_SETS:
        return read_text_set(spec, data_dir), None
    raise UsageError("data", f"one of {', '.join(SPECS)}", repr(spec))


def _labelled(spec: str, parts: Parts) -> Parts:
    for part in parts:
        if part is not None and (unknown := int((part.labels_N < 0).sum())):
            raise UsageError(f"data {spec}", "a label for each text", f"{unknown} without one")
    return parts


def _digest(parts: Sequence[Dataset]) -> str:
    """SHA-256 over the three parts: sizes, positions, labels, what the items are, and the names of the classes."""
    digest = hashlib.sha256("\0".join(parts[0].classes).encode())
    for part in parts:
        items = part.items
        digest.update(repr((len(items), "texts") if isinstance(items, tuple) else items.shape).encode())
        for array in (part.ids_N.astype("<i8"), part.labels_N.astype("<i8")):
            digest.update(np.ascontiguousarray(array).data)
        if isinstance(items, tuple):
            for item in items:
                raw = _raw(item)
                digest.update(len(raw).to_bytes(8, "little") + raw)
        else:
            digest.update(np.ascontiguousarray(items).data)
    return digest.hexdigest()


def _raw(item: str | Clip) -> bytes:
    if isinstance(item, str):
        return item.encode("utf-8", "surrogatepass")
    return item.rate_hz.to_bytes(4, "little") + item.samples_T.astype("<i2").tobytes()
