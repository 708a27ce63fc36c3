"""``composite``: items of Fashion-MNIST, coloured, over crops of photographs, 3×32×32. A stand-in for a set of CIFAR's size.

It is made anew each time, of files that others distribute, and always the same: items from ``fashion-mnist``, photographs
from the Debian package mate-backgrounds (or from the folder of ``composite:DIR``). The test part has other items *and* other
photographs than the training part.

======  ==============================================================================================================
place   the item, 28×28, lies anywhere in the 32×32, mirrored or not
shape   it covers what is behind it where it is brighter than a third, and less where it is darker
colour  one for each item, any; its brightness is the item's, from a third to the whole
behind  a 32×32 crop from anywhere in one of the photographs, whose short side is 256 then
======  ==============================================================================================================
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mdi_exit.data.sets import Dataset, Parts, Split, load
from mdi_exit.errors import UsageError

__all__ = ["COMPOSITE", "PHOTOGRAPHS", "composite"]

COMPOSITE: Final = "composite"
PHOTOGRAPHS: Final = Path("/usr/share/backgrounds/mate/nature")

_SIZE: Final = 32
_SHORT_SIDE: Final = 256
_ONE_FOR_TEST: Final = 4  # of so many photographs
_SEED: Final = 20_230_302
_AT_ONCE: Final = 2000

Pixels = NDArray[np.uint8]


def composite(data_dir: Path | None = None, photographs: Path = PHOTOGRAPHS) -> Parts:
    """Training and test part, uint8 N×32×32×3. Raises ``UsageError`` that says which files are missing."""
    files = sorted(path for path in photographs.glob("*") if path.suffix.lower() in {".jpg", ".jpeg", ".png"})
    if len(files) < _ONE_FOR_TEST:
        expected = f"at least {_ONE_FOR_TEST} photographs in {photographs} (those of Debian's package mate-backgrounds)"
        raise UsageError(f"data {COMPOSITE}", expected, len(files))
    kept = files[_ONE_FOR_TEST - 1 :: _ONE_FOR_TEST]
    train = _part("train", [path for path in files if path not in kept], data_dir)
    return train, _part("test", kept, data_dir)


def _part(split: Split, files: list[Path], data_dir: Path | None) -> Dataset:
    items = load("fashion-mnist", split, data_dir)
    behind = [_photograph(path) for path in files]
    rng = np.random.default_rng((_SEED, len(split)))
    images_NHWC = np.empty((len(items), _SIZE, _SIZE, 3), np.uint8)
    for start in range(0, len(items), _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        images_NHWC[some] = _over(items.images_NHWC[some, ..., 0], behind, rng)
    return Dataset(COMPOSITE, images_NHWC, items.labels_N, items.classes, items.ids_N)


def _photograph(path: Path) -> Pixels:
    """H×W×3, the short side 256 pixels."""
    try:
        with Image.open(path) as image:
            scale = _SHORT_SIDE / min(image.size)
            size = max(round(image.width * scale), _SHORT_SIDE), max(round(image.height * scale), _SHORT_SIDE)
            return np.asarray(image.convert("RGB").resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0), np.uint8)
    except Exception as error:  # noqa: BLE001 - decoders of broken files raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"data file {path}", "a readable photograph", reason) from None


def _over(items_NHW: Pixels, behind: list[Pixels], rng: np.random.Generator) -> Pixels:
    """Each item, N×28×28, over a crop: N×32×32×3."""
    count, side = len(items_NHW), items_NHW.shape[1]
    which_N, mirrored_N = rng.integers(len(behind), size=count), rng.random(count) < 0.5
    place_N2, at_N2 = rng.random((count, 2)), rng.integers(_SIZE - side + 1, size=(count, 2))
    colour_N3 = rng.integers(256, size=(count, 3)).astype(np.uint32)
    crops_NHWC = np.empty((count, _SIZE, _SIZE, 3), np.uint8)
    placed_NHW = np.zeros((count, _SIZE, _SIZE), np.uint32)
    for index in range(count):
        photograph = behind[which_N[index]]
        y, x = (int(share * (length - _SIZE)) for share, length in zip(place_N2[index], photograph.shape, strict=False))
        crops_NHWC[index] = photograph[y : y + _SIZE, x : x + _SIZE]
        item_HW = items_NHW[index, :, ::-1] if mirrored_N[index] else items_NHW[index]
        y, x = at_N2[index]
        placed_NHW[index, y : y + side, x : x + side] = item_HW
    cover_NHW1 = np.minimum(3 * placed_NHW, 255)[..., None]
    shade_NHW1 = ((255 + 2 * placed_NHW) // 3)[..., None]
    item_NHWC = shade_NHW1 * colour_N3[:, None, None, :] // 255
    found: Pixels = ((cover_NHW1 * item_NHWC + (255 - cover_NHW1) * crops_NHWC) // 255).astype(np.uint8)
    return found
