"""Data sets: tiny files in the real formats, and one plain line for each that is none."""

from __future__ import annotations

import gzip
import importlib.util
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mdi_exit.data import load, shipped
from mdi_exit.errors import UsageError

IMAGES = "t10k-images-idx3-ubyte"
LABELS = "t10k-labels-idx1-ubyte"


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(int(dim).to_bytes(4, "big") for dim in array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five shipped images as a test set."""
    dataset = shipped()
    (tmp_path / f"{IMAGES}.gz").write_bytes(gzip.compress(idx(dataset.images_NHWC[:5, ..., 0])))
    (tmp_path / f"{LABELS}.gz").write_bytes(gzip.compress(idx(dataset.labels_N[:5])))
    return tmp_path


def refusal(name: str, folder: Path) -> str:
    with pytest.raises(UsageError) as caught:
        load(name, "test", folder)
    text = str(caught.value)
    assert "\n" not in text
    assert str(folder) in text or name in text
    return text


def test_types_and_positions(folder: Path) -> None:
    dataset = load("fashion-mnist", "test", folder)
    assert (dataset.images_NHWC.dtype, dataset.labels_N.dtype, dataset.ids_N.dtype) == (np.uint8, np.int64, np.int64)
    part = dataset.subset(np.array([3, 1]))
    assert part.ids_N.tolist() == [3, 1]
    assert part.labels_N.tolist() == [dataset.labels_N[3], dataset.labels_N[1]]
    assert len(part) == 2


def test_idx_files_are_read_plain_and_compressed_and_of_both_splits(tmp_path: Path) -> None:
    wanted = shipped().subset(np.arange(30))
    folder = tmp_path / "FashionMNIST" / "raw"  # where torchvision puts them
    folder.mkdir(parents=True)
    for name, array in (("images-idx3-ubyte", wanted.images_NHWC[..., 0]), ("labels-idx1-ubyte", wanted.labels_N)):
        (folder / f"train-{name}").write_bytes(idx(array))
        (folder / f"t10k-{name}.gz").write_bytes(gzip.compress(idx(array)))
    for split in ("train", "test"):
        dataset = load("fashion-mnist", split, tmp_path)
        assert np.array_equal(dataset.images_NHWC, wanted.images_NHWC)
        assert np.array_equal(dataset.labels_N, wanted.labels_N)


def test_unknown_data_sets_are_refused() -> None:
    with pytest.raises(UsageError, match="one of fashion-mnist, cifar10, cifar100, svhn, got 'mnist'"):
        load("mnist", "test")


def test_the_shipped_images_are_2000_with_every_class() -> None:
    dataset = shipped()
    assert dataset.images_NHWC.shape == (2000, 28, 28, 1)
    assert set(dataset.labels_N.tolist()) == set(range(10))
    assert len(dataset.classes) == 10


def test_the_shipped_images_are_the_first_of_the_whole_test_set(tmp_path: Path) -> None:
    if not Path("/usr/share/datasets/fashion-mnist").is_dir():
        pytest.skip("needs the whole data set (Debian: dataset-fashion-mnist)")
    whole = load("fashion-mnist", "test", tmp_path)
    assert len(whole) == 10_000
    assert np.array_equal(whole.images_NHWC[:2000], shipped().images_NHWC)
    assert np.array_equal(whole.labels_N[:2000], shipped().labels_N)


GOOD = idx(np.zeros((5, 28, 28)))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda _: gzip.compress(GOOD)[:-20], "readable IDX"),
        (lambda raw: raw[:40] + bytes([raw[40] ^ 255]) + raw[41:], "readable IDX"),
        (lambda _: GOOD, "readable IDX"),
        (lambda _: b"", "IDX"),
        (lambda _: gzip.compress(b"\x00\x00\x0d\x03" + GOOD[4:]), "first bytes 00000d03"),
        (lambda _: gzip.compress(GOOD[:-1]), "bytes for shape (5, 28, 28)"),
        (lambda _: gzip.compress(GOOD + b"x"), "bytes for shape (5, 28, 28)"),
        (lambda _: gzip.compress(b"\x00\x00\x08\x03\x00"), "bytes for shape"),
        (lambda _: gzip.compress(b"\x00\x00\x08\x04" + b"\xff" * 16), "bytes for shape"),
        (lambda _: gzip.compress(b"\x00\x00\x08\x03" + b"\x80\x00\x00\x00" * 2 + b"\x00\x00\x00\x04"), "bytes for shape"),
        (lambda _: gzip.compress(idx(np.zeros((4, 28, 28)))), "5 images of two dimensions"),
        (lambda _: gzip.compress(idx(np.zeros(5))), "5 images of two dimensions"),
    ],
    ids=[
        "truncated gzip", "flipped byte", "not gzip", "empty", "floats", "short", "long", "short header", "huge",
        "product of 2^64", "one fewer", "labels",
    ],
)  # fmt: skip
def test_images_that_are_none_are_one_line(folder: Path, spoil: Callable[[bytes], bytes], says: str) -> None:
    path = folder / f"{IMAGES}.gz"
    path.write_bytes(spoil(path.read_bytes()))
    assert says in refusal("fashion-mnist", folder)


@pytest.mark.parametrize(
    ("labels", "says"),
    [(np.array([0, 1, 2, 3, 10]), "labels below 10"), (np.zeros((5, 1)), "one dimension"), (np.zeros(4), "4 images")],
    ids=["beyond the classes", "two dimensions", "one fewer"],
)
def test_labels_that_do_not_fit_are_one_line(folder: Path, labels: np.ndarray, says: str) -> None:
    (folder / f"{LABELS}.gz").write_bytes(gzip.compress(idx(labels)))
    assert says in refusal("fashion-mnist", folder)


def test_a_data_set_without_images_is_refused(folder: Path) -> None:
    (folder / f"{IMAGES}.gz").write_bytes(gzip.compress(idx(np.zeros((0, 28, 28)))))
    (folder / f"{LABELS}.gz").write_bytes(gzip.compress(idx(np.zeros(0))))
    assert "0 images" in refusal("fashion-mnist", folder)


def cifar_rows(labels: list[tuple[int, ...]], seed: int = 0) -> tuple[bytes, np.ndarray]:
    images = np.random.default_rng(seed).integers(0, 256, (len(labels), 3, 32, 32), dtype=np.uint8)
    rows = b"".join(bytes(label) + image.tobytes() for label, image in zip(labels, images, strict=True))
    return rows, images.transpose(0, 2, 3, 1)


def test_cifar10_training_batches_come_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    made = [cifar_rows([(number,), (number + 4,)], number) for number in range(1, 6)]
    for number, (rows, _) in enumerate(made, 1):
        (folder / f"data_batch_{number}.bin").write_bytes(rows)
    dataset = load("cifar10", "train", tmp_path)
    assert dataset.labels_N.tolist() == [1, 5, 2, 6, 3, 7, 4, 8, 5, 9]
    assert np.array_equal(dataset.images_NHWC, np.concatenate([images for _, images in made]))


def test_cifar100_has_the_fine_labels_and_their_names(tmp_path: Path) -> None:
    rows, images = cifar_rows([(19, 99), (0, 3)])
    (tmp_path / "test.bin").write_bytes(rows)
    assert load("cifar100", "test", tmp_path).classes[99] == "class 99"
    (tmp_path / "fine_label_names.txt").write_text("\n".join(f"name{i}" for i in range(100)))
    dataset = load("cifar100", "test", tmp_path)
    assert [dataset.classes[label] for label in dataset.labels_N] == ["name99", "name3"]
    assert np.array_equal(dataset.images_NHWC, images)
    (tmp_path / "fine_label_names.txt").write_text("apple\nbear")
    assert "labels below 2" in refusal("cifar100", tmp_path)


@pytest.mark.parametrize(("raw", "says"), [(b"", "multiple of 3073"), (bytes(3072), "multiple of 3073")])
def test_cifar_files_of_another_size_are_one_line(tmp_path: Path, raw: bytes, says: str) -> None:
    (tmp_path / "test_batch.bin").write_bytes(raw)
    assert says in refusal("cifar10", tmp_path)


def test_cifar_labels_beyond_the_classes_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "test_batch.bin").write_bytes(cifar_rows([(10,)])[0])
    assert "labels below 10" in refusal("cifar10", tmp_path)


def test_without_files_and_without_the_extra_it_says_where_it_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    text = refusal("cifar10", tmp_path)
    assert str(tmp_path / "cifar-10-batches-bin") in text
    assert "extra 'torch'" in text


def test_a_download_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("torchvision", reason="needs the extra 'torch'").datasets

    def unreachable(**_: object) -> None:
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(datasets, "CIFAR10", unreachable)
    text = refusal("cifar10", tmp_path)
    assert "no files, and: no route to host" in text
    assert str(tmp_path) in text


def test_the_subset_command_makes_the_file_that_is_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "subset.npz"
    argv = ["subset", "--out", str(out), "--count", "3", "--data-dir", str(folder)]
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.delitem(sys.modules, "mdi_exit.data.subset", raising=False)
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("mdi_exit.data.subset", run_name="__main__")
    assert caught.value.code == 0
    assert "3 images" in capsys.readouterr().out
    with np.load(out) as made:
        assert sorted(made) == ["images_NHW", "labels_N"]
        assert made["labels_N"].dtype == np.uint8
        assert np.array_equal(made["images_NHW"], shipped().images_NHWC[:3, ..., 0])
        assert np.array_equal(made["labels_N"], shipped().labels_N[:3])


# --- SVHN


def svhn_file(path: Path, split: str, labels: list[int], **changed: object) -> np.ndarray:
    savemat = pytest.importorskip("scipy.io", reason="needs the extra 'offline'").savemat
    images_NHWC = np.random.default_rng(0).integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
    content = {"X": images_NHWC.transpose(1, 2, 3, 0), "y": np.array(labels, np.uint8)[:, None]} | changed
    savemat(path / f"{split}_32x32.mat", content)
    return images_NHWC


def test_svhn_has_its_ten_for_the_digit_nought(tmp_path: Path) -> None:
    images = svhn_file(tmp_path, "train", [1, 10, 9])
    dataset = load("svhn", "train", tmp_path)
    assert [dataset.classes[label] for label in dataset.labels_N] == ["1", "0", "9"]
    assert np.array_equal(dataset.images_NHWC, images)


@pytest.mark.parametrize(
    ("labels", "changed", "says"),
    [
        ([1, 11], {}, "labels below 10"),
        ([0, 1], {}, "labels from 1 to 10"),
        ([1, 2], {"y": np.ones((3, 1), np.uint8)}, "2 labels"),
        ([1, 2], {"X": np.zeros((32, 32, 3, 2))}, "uint8 X"),
        ([1, 2], {"X": np.zeros((3, 3), np.uint8)}, "uint8 X"),
    ],
)
def test_svhn_files_that_do_not_fit_are_one_line(
    tmp_path: Path, labels: list[int], changed: dict[str, object], says: str
) -> None:
    svhn_file(tmp_path, "test", labels, **changed)
    assert says in refusal("svhn", tmp_path)


def test_a_matlab_file_that_is_none_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("scipy.io", reason="needs the extra 'offline'")
    (tmp_path / "test_32x32.mat").write_bytes(b"no matlab file at all" * 20)
    assert "a MATLAB file" in refusal("svhn", tmp_path)
    (tmp_path / "test_32x32.mat").write_bytes(b"")
    assert "a MATLAB file" in refusal("svhn", tmp_path)
