"""A user's own images: a folder in the layout of torchvision's ImageFolder, or a NumPy file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mdi_exit.arrays import read_arrays
from mdi_exit.data.pixels import Pixels, fitted, pixels_of
from mdi_exit.data.sets import Dataset, Parts
from mdi_exit.errors import UsageError
from mdi_exit.limits import MAX_IMAGE_FILE_PIXELS

__all__ = ["IMAGE_SUFFIXES", "from_folder", "from_npz"]

IMAGE_SUFFIXES: Final = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})

Shape = tuple[int, ...]


# --- a folder


def from_folder(place: Path, shape: Shape | None = None) -> Parts:
    """``train/CLASS/…`` and ``test/CLASS/…``, or ``CLASS/…`` alone: training and test part (None without one).

    Classes are the names of the folders, in order. ``shape`` (C, H, W): what every image is made to be; without it they
    must be of one size. Raises ``UsageError``.
    """
    root = place.expanduser()
    if not root.is_dir():
        raise UsageError(f"data folder:{place}", "a folder", "none" if not root.exists() else "a file")
    train = root / "train" if (root / "train").is_dir() else root
    test = next((root / name for name in ("test", "val") if train != root and (root / name).is_dir()), None)
    classes = tuple(sorted(path.name for path in train.iterdir() if path.is_dir()))
    if not classes:
        raise UsageError(f"data folder:{place}", "a folder for each class", f"none in {train}")
    return _read(train, classes, shape), None if test is None else _read(test, classes, shape)


def _read(root: Path, classes: tuple[str, ...], shape: Shape | None) -> Dataset:
    strange = sorted({path.name for path in root.iterdir() if path.is_dir()} - set(classes))
    if strange:
        raise UsageError(f"data folder {root}", "the classes of the training part", ", ".join(strange[:3]))
    files = [(number, path) for number, name in enumerate(classes) for path in _images_in(root / name)]
    if not files:
        wanted = ", ".join(sorted(IMAGE_SUFFIXES))
        raise UsageError(f"data folder {root}", f"images ({wanted}) in the folders of the classes", "none")
    images = [_read_image(path) for _, path in files]
    labels_N = np.array([number for number, _ in files], np.int64)
    return Dataset("folder", _stacked(images, shape, root), labels_N, classes, np.arange(len(files), dtype=np.int64))


def _images_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def _read_image(path: Path) -> Pixels:
    try:
        with Image.open(path) as image:
            return pixels_of(image, MAX_IMAGE_FILE_PIXELS)
    except Exception as error:  # noqa: BLE001 - decoders of broken files raise anything, even SyntaxError
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"data file {path}", "a readable image", reason) from None


def _stacked(images: Sequence[Pixels], shape: Shape | None, root: Path) -> Pixels:
    if shape is None:
        sizes = sorted({image.shape[:2] for image in images})
        if len(sizes) > 1:
            raise UsageError(
                f"data folder {root}", "images of one size, or a stated one", f"{sizes[0]} and {sizes[-1]}"
            )
        colour = any(image.ndim == 3 for image in images)
        shape = (3 if colour else 1, *sizes[0])
    return np.stack([fitted(image, shape) for image in images])


# --- a NumPy file


def from_npz(place: Path) -> Parts:
    """``x`` or ``images`` (uint8, N×H×W or N×H×W×C), ``y`` or ``labels`` (integers), the same with ``_test`` if there is
    a test part, ``classes`` (names) if there are any. Nothing is unpickled. Raises ``UsageError``.
    """
    path = place.expanduser()
    arrays = read_arrays(path, "data file")
    train = _part(path, arrays, "")
    if train is None:
        expected = "x or images, y or labels (with or without _train)"
        raise UsageError(f"data file {path}", expected, ", ".join(sorted(arrays)) or "nothing")
    test = _part(path, arrays, "_test")
    labels = [train[1], *([test[1]] if test else [])]
    count = max(int(labels_N.max(initial=0)) for labels_N in labels) + 1
    names = tuple(str(name) for name in arrays["classes"].tolist()) if "classes" in arrays else ()
    classes = names or tuple(f"class {number}" for number in range(count))
    if count > len(classes) or min(int(labels_N.min(initial=0)) for labels_N in labels) < 0:
        raise UsageError(f"data file {path}", f"labels from 0 to {len(classes) - 1}", "others")
    made = [
        Dataset("npz", images, labels_N, classes, np.arange(len(labels_N), dtype=np.int64))
        for images, labels_N in (train, *([test] if test else []))
    ]
    return made[0], made[1] if test else None


def _part(
    path: Path, arrays: Mapping[str, NDArray[np.generic]], suffix: str
) -> tuple[Pixels, NDArray[np.int64]] | None:
    """Images N×H×W×C and labels of one part, checked; None when the file has no such part."""
    endings = (suffix,) if suffix else ("", "_train")
    images = _named(arrays, [name + ending for name in ("x", "images") for ending in endings])
    labels = _named(arrays, [name + ending for name in ("y", "labels") for ending in endings])
    if images is None or labels is None:
        return None
    x_NHWC = images[..., None] if images.ndim == 3 else images
    if x_NHWC.dtype != np.uint8 or x_NHWC.ndim != 4 or x_NHWC.shape[3] not in (1, 3) or 0 in x_NHWC.shape:
        expected = "uint8 images, N×H×W, N×H×W×1 or N×H×W×3"
        raise UsageError(f"data file {path}", expected, f"{images.dtype} of shape {images.shape}")
    if labels.shape != (len(x_NHWC),) or not np.issubdtype(labels.dtype, np.integer):
        expected = f"{len(x_NHWC)} integer labels"
        raise UsageError(f"data file {path}", expected, f"{labels.dtype} of shape {labels.shape}")
    return x_NHWC.astype(np.uint8), labels.astype(np.int64)


def _named(arrays: Mapping[str, NDArray[np.generic]], names: Sequence[str]) -> NDArray[np.generic] | None:
    return next((arrays[name] for name in names if name in arrays), None)
