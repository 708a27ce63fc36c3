"""Data sets of images: local files when present, torchvision's download otherwise.

Nothing here unpickles: Fashion-MNIST is read from its gzipped IDX files, CIFAR from its binary version, SVHN from its
MATLAB files. (torchvision knows only CIFAR's pickled version; its download is used through torchvision itself, which checks
the archive's digest first.)
"""

from __future__ import annotations

import gzip
import importlib.util
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from math import prod
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from mdi_exit.data.sound import Clip
from mdi_exit.errors import UsageError

__all__ = ["DATASETS", "Dataset", "Items", "Parts", "Split", "load", "shipped"]

Split = Literal["train", "test"]
Items = NDArray[np.uint8] | tuple[str, ...] | tuple[Clip, ...]

FASHION_MNIST_CLASSES: Final = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
CIFAR10_CLASSES: Final = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
SVHN_CLASSES: Final = tuple("0123456789")
SHIPPED: Final = "fashion-mnist-test-2000.npz"


@dataclass(frozen=True, slots=True)
class Dataset:
    """``items``: images, uint8, N×H×W×C, or N texts, or N clips of sound; ``labels_N``: int64, -1 where none is known;
    ``ids_N``: position in the original split.
    """

    name: str
    items: Items
    labels_N: NDArray[np.int64]
    classes: tuple[str, ...]
    ids_N: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels_N)

    @property
    def images_NHWC(self) -> NDArray[np.uint8]:
        """Raises ``UsageError`` for a data set of anything but images."""
        if isinstance(self.items, tuple):
            raise UsageError(f"data {self.name}", "images", self.kind)
        return self.items

    @property
    def kind(self) -> Literal["image", "text", "audio"]:
        """That of a model's input (``InputSpec.kind``)."""
        if not isinstance(self.items, tuple):
            return "image"
        return "audio" if any(isinstance(item, Clip) for item in self.items[:1]) else "text"

    def subset(self, indices: NDArray[np.int64]) -> Dataset:
        items = self.items
        chosen: Any = [items[index] for index in indices.tolist()] if isinstance(items, tuple) else items[indices]
        chosen = tuple(chosen) if isinstance(items, tuple) else chosen
        return Dataset(self.name, chosen, self.labels_N[indices], self.classes, self.ids_N[indices])


Parts = tuple[Dataset, Dataset | None]
"""Training part, and test part where there is one."""


def _dataset(name: str, images: NDArray[np.uint8], labels: NDArray[np.int64], classes: tuple[str, ...]) -> Dataset:
    return Dataset(name, images, labels, classes, np.arange(len(labels), dtype=np.int64))


def shipped() -> Dataset:
    """The first 2,000 test images of Fashion-MNIST, part of the package (MIT licence, see assets/NOTICE)."""
    with resources.as_file(resources.files("mdi_exit") / "assets" / SHIPPED) as path, np.load(path) as file:
        images, labels = file["images_NHW"], file["labels_N"].astype(np.int64)
    return _dataset("shipped", images[..., None], labels, FASHION_MNIST_CLASSES)


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """One IDX file of unsigned bytes, gzipped or not. Raises ``UsageError``."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"data file {path}", "a readable IDX file", error) from None
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise UsageError(f"data file {path}", "an IDX file of unsigned bytes", f"first bytes {raw[:4].hex()}")
    begin = 4 + 4 * raw[3]
    dims = tuple(int.from_bytes(raw[at : at + 4], "big") for at in range(4, begin, 4))
    if len(raw) - begin != prod(dims):
        raise UsageError(f"data file {path}", f"{begin + prod(dims)} bytes for shape {dims}", len(raw))
    return np.frombuffer(raw, np.uint8, offset=begin).reshape(dims)


def _first(folders: list[Path], names: tuple[str, ...]) -> Path | None:
    return next((path for folder in folders for name in names if (path := folder / name).is_file()), None)


def _fashion_mnist(folders: list[Path], split: Split) -> Dataset | None:
    stem = "train" if split == "train" else "t10k"
    images = _first(folders, (f"{stem}-images-idx3-ubyte.gz", f"{stem}-images-idx3-ubyte"))
    labels = _first(folders, (f"{stem}-labels-idx1-ubyte.gz", f"{stem}-labels-idx1-ubyte"))
    if images is None or labels is None:
        return None
    images_NHW, labels_N = _read_idx(images), _read_idx(labels).astype(np.int64)
    if labels_N.ndim != 1:
        raise UsageError(f"data file {labels}", "labels in one dimension", labels_N.shape)
    if images_NHW.ndim != 3 or len(images_NHW) != len(labels_N):
        raise UsageError(f"data file {images}", f"{len(labels_N)} images of two dimensions", images_NHW.shape)
    return _dataset("fashion-mnist", images_NHW[..., None], labels_N, FASHION_MNIST_CLASSES)


def _cifar_files(paths: list[Path], label_bytes: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """CIFAR's binary version: label bytes (the last one counts), then 3072 bytes, channels first."""
    row = label_bytes + 3 * 32 * 32
    images, labels = [], []
    for path in paths:
        try:
            raw = np.frombuffer(path.read_bytes(), np.uint8)
        except OSError as error:
            raise UsageError(f"data file {path}", "a readable file", error.strerror) from None
        if raw.size == 0 or raw.size % row:
            raise UsageError(f"data file {path}", f"a multiple of {row} bytes", raw.size)
        table = raw.reshape(-1, row)
        labels.append(table[:, label_bytes - 1].astype(np.int64))
        images.append(table[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return np.concatenate(images), np.concatenate(labels)


def _cifar10(folders: list[Path], split: Split) -> Dataset | None:
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] if split == "train" else ["test_batch.bin"]
    paths = [_first(folders, (name,)) for name in names]
    found = [path for path in paths if path is not None]
    if len(found) != len(names):
        return None
    images, labels = _cifar_files(found, 1)
    return _dataset("cifar10", images, labels, CIFAR10_CLASSES)


def _cifar100(folders: list[Path], split: Split) -> Dataset | None:
    path = _first(folders, (f"{split}.bin",))
    if path is None:
        return None
    images, labels = _cifar_files([path], 2)
    names_file = _first(folders, ("fine_label_names.txt",))
    names = tuple(names_file.read_text().split()) if names_file else tuple(f"class {i}" for i in range(100))
    return _dataset("cifar100", images, labels, names)


def _svhn(folders: list[Path], split: Split) -> Dataset | None:
    """SVHN's cropped digits: X is 32×32×3×N, y is N×1 with 10 for the digit 0."""
    path = _first(folders, (f"{split}_32x32.mat",))
    if path is None:
        return None
    try:
        from scipy.io import loadmat
    except ImportError:
        raise UsageError("data set svhn", "the extra 'offline' (pip install 'mdi-exit[offline]')", "none") from None
    try:
        content = loadmat(path, variable_names=("X", "y"))
        images_HWCN, labels_N1 = content["X"], content["y"]
    except Exception as error:  # noqa: BLE001 - the reader of broken files raises anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"data file {path}", "a MATLAB file with X and y", reason) from None
    if images_HWCN.ndim != 4 or images_HWCN.shape[:3] != (32, 32, 3) or images_HWCN.dtype != np.uint8:
        raise UsageError(f"data file {path}", "uint8 X of 32×32×3×N", f"{images_HWCN.dtype} {images_HWCN.shape}")
    labels_N = labels_N1.reshape(-1).astype(np.int64)
    if len(labels_N) != images_HWCN.shape[3] or (labels_N.size and labels_N.min() < 1):
        raise UsageError(
            f"data file {path}", f"{images_HWCN.shape[3]} labels from 1 to 10", f"{len(labels_N)}, or others"
        )
    labels_N[labels_N == len(SVHN_CLASSES)] = 0
    return _dataset("svhn", np.ascontiguousarray(images_HWCN.transpose(3, 0, 1, 2)), labels_N, SVHN_CLASSES)


_Reader = Callable[[list[Path], Split], "Dataset | None"]


@dataclass(frozen=True, slots=True)
class _Source:
    """How a data set is found: reader of local files, where they may lie, torchvision's class for a download."""

    read: _Reader
    folders: tuple[str, ...]
    torchvision: str


DATASETS: Final[dict[str, _Source]] = {
    "fashion-mnist": _Source(
        _fashion_mnist, ("fashion-mnist", "FashionMNIST/raw", "/usr/share/datasets/fashion-mnist"), "FashionMNIST"
    ),
    "cifar10": _Source(_cifar10, ("cifar10", "cifar-10-batches-bin"), "CIFAR10"),
    "cifar100": _Source(_cifar100, ("cifar100", "cifar-100-binary"), "CIFAR100"),
    "svhn": _Source(_svhn, ("svhn",), "SVHN"),
}


def load(name: str, split: Split, data_dir: Path | None = None) -> Dataset:
    """A whole split of a data set. Raises ``UsageError`` that says where it looked."""
    source = DATASETS.get(name)
    if source is None:
        raise UsageError("data set", f"one of {', '.join(DATASETS)}", repr(name))
    root = data_dir if data_dir is not None else Path("data")
    folders = [root, *(root / folder for folder in source.folders)]  # an absolute folder replaces root
    dataset = source.read(folders, split)
    if dataset is None:
        return _download(name, source, split, root)
    if len(dataset) == 0 or dataset.labels_N.max() >= len(dataset.classes):
        got = f"{len(dataset)} images, labels up to {dataset.labels_N.max(initial=0)}"
        raise UsageError(f"data set {name}", f"images with labels below {len(dataset.classes)}", got)
    return dataset


def _download(name: str, source: _Source, split: Split, root: Path) -> Dataset:
    looked = f"its files in {root} or {', '.join(str(root / folder) for folder in source.folders)}"
    if importlib.util.find_spec("torchvision") is None:
        raise UsageError(f"data set {name}", f"{looked}, or the extra 'torch' for a download", "neither")
    from torchvision import datasets

    maker: Any = getattr(datasets, source.torchvision)
    which: dict[str, Any] = {"split": split} if name == "svhn" else {"train": split == "train"}
    try:
        made = maker(root=str(root), download=True, **which)
    except Exception as error:  # noqa: BLE001 - whatever the network or the archive did wrong, the user's way on is one
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"data set {name}", f"{looked}, or a download", f"no files, and: {reason}") from None
    if name == "svhn":  # N×C×H×W, without names of classes
        images_NHWC = np.ascontiguousarray(np.asarray(made.data, np.uint8).transpose(0, 2, 3, 1))
        return _dataset(name, images_NHWC, np.asarray(made.labels, np.int64), SVHN_CLASSES)
    images = np.asarray(made.data, np.uint8)
    images_NHWC = images if images.ndim == 4 else images[..., None]
    return _dataset(name, images_NHWC, np.asarray(made.targets, np.int64), tuple(made.classes))
