"""Composite images: items of Fashion-MNIST over photographs, from tiny files in the real formats."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mdi_exit.data import shipped, splits
from mdi_exit.data.composite import composite
from mdi_exit.errors import UsageError


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(int(dim).to_bytes(4, "big") for dim in array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Data sets in ``data``; in ``photographs`` three greenish ones, and a red one that comes fourth."""
    items, data, photographs = shipped(), tmp_path / "data", tmp_path / "photographs"
    data.mkdir()
    photographs.mkdir()
    for split, some in (("train", slice(0, 60)), ("t10k", slice(60, 90))):
        (data / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(items.images_NHWC[some, ..., 0])))
        (data / f"{split}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(items.labels_N[some])))
    rng = np.random.default_rng(0)
    for number in range(4):
        noise_HWC = rng.integers(0, 100, (300, 400, 3)).astype(np.uint8)
        noise_HWC[..., 0 if number == 3 else 1] += 150
        Image.fromarray(noise_HWC).save(photographs / f"{number}.png")
    return tmp_path


def test_they_are_of_cifars_size_and_the_same_again(folder: Path) -> None:
    train, test = composite(folder / "data", folder / "photographs")
    assert test is not None
    assert train.images_NHWC.shape == (60, 32, 32, 3)
    assert test.images_NHWC.shape == (30, 32, 32, 3)
    assert train.labels_N.tolist() == shipped().labels_N[:60].tolist()
    assert train.classes == shipped().classes
    again, _ = composite(folder / "data", folder / "photographs")
    assert np.array_equal(again.images_NHWC, train.images_NHWC)


def test_no_photograph_is_behind_items_of_both_parts(folder: Path) -> None:
    train, test = composite(folder / "data", folder / "photographs")
    assert test is not None
    for part, red in ((train, False), (test, True)):
        border_N3 = part.images_NHWC[:, 0].mean(axis=1)  # the top row, where few items reach
        assert np.mean((border_N3[:, 0] > border_N3[:, 1]) == red) > 0.9


def test_an_item_is_seen_before_what_is_behind_it(folder: Path) -> None:
    train, _ = composite(folder / "data", folder / "photographs")
    green_N = train.images_NHWC[:, 15:17, 15:17, 1].mean(axis=(1, 2))
    assert np.std(green_N) > 40  # any colour in the middle, one at the border
    assert np.std(train.images_NHWC[:, 0, :, 1].mean(axis=1)) < 40


def test_a_split_by_its_name_and_what_is_missing_in_one_line(folder: Path) -> None:
    made = splits(f"composite:{folder / 'photographs'}", data_dir=folder / "data")
    assert (made.record.train, made.record.calibration, made.record.test) == (54, 6, 30)
    with pytest.raises(UsageError, match=r"at least 4 photographs in .*mate-backgrounds.*, got 0") as caught:
        splits(f"composite:{folder / 'nowhere'}", data_dir=folder / "data")
    assert "\n" not in str(caught.value)
    (folder / "photographs" / "0.png").write_bytes(b"none")
    with pytest.raises(UsageError, match="a readable photograph"):
        splits(f"composite:{folder / 'photographs'}", data_dir=folder / "data")
