"""Splits by seed: parts without a sample in common, the same again, recorded; a user's own folder or NumPy file."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mdi_exit.data import inputs_of, preprocess, shipped, splits
from mdi_exit.data.classes import class_map
from mdi_exit.errors import UsageError
from mdi_exit.model.manifest import InputSpec


def refusal(spec: str, **options: object) -> str:
    with pytest.raises(UsageError) as caught:
        splits(spec, **options)  # type: ignore[arg-type]
    text = str(caught.value)
    assert "\n" not in text
    return text


# --- splits


@given(st.integers(0, 2**63 - 1), st.integers(1, 1599))
def test_parts_have_no_sample_in_common_and_leave_none_out(seed: int, calibration: int) -> None:
    made = splits("shipped", seed=seed, calibration=calibration)
    ids = [part.ids_N.tolist() for part in (made.train, made.calibration, made.test)]
    assert sorted(ids[0] + ids[1] + ids[2]) == list(range(2000))
    assert all(part == sorted(part) for part in ids)
    assert (len(ids[0]), len(ids[1]), len(ids[2])) == (made.record.train, calibration, 400)


def test_a_seed_gives_the_same_split_again_and_another_seed_another() -> None:
    first, again, other = (splits("shipped", seed=seed) for seed in (3, 3, 4))
    assert first.record == again.record
    assert np.array_equal(first.calibration.images_NHWC, again.calibration.images_NHWC)
    assert first.record.sha256 != other.record.sha256
    assert first.record.calibration == 160


def test_images_keep_their_labels() -> None:
    whole, part = shipped(), splits("shipped").calibration
    assert np.array_equal(part.labels_N, whole.labels_N[part.ids_N])
    assert np.array_equal(part.images_NHWC, whole.images_NHWC[part.ids_N])


def npz(path: Path, **arrays: object) -> str:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return f"npz:{path}"


def samples(count: int, *size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, *size), dtype=np.uint8), np.arange(count) % 3


def test_one_changed_pixel_label_or_class_name_changes_the_record(tmp_path: Path) -> None:
    x, y = samples(40, 4, 4)
    brighter, moved = x.copy(), y.copy()
    brighter[7, 1, 1] ^= 1
    moved[7] = (moved[7] + 1) % 3
    given_ = [
        {"x": x, "y": y},
        {"x": brighter, "y": y},
        {"x": x, "y": moved},
        {"x": x, "y": y, "classes": ["a", "b", "c"]},
    ]
    records = [splits(npz(tmp_path / f"{number}.npz", **arrays)).record for number, arrays in enumerate(given_)]
    assert len({record.sha256 for record in records}) == 4
    assert splits(npz(tmp_path / "again.npz", x=x, y=y)).record.sha256 == records[0].sha256


def test_a_test_part_of_its_own_is_kept_whole(tmp_path: Path) -> None:
    x, y = samples(60, 5, 4, 3)
    made = splits(npz(tmp_path / "a.npz", x=x[:50], y=y[:50], x_test=x[50:], y_test=y[50:]))
    assert np.array_equal(made.test.images_NHWC, x[50:])
    assert (made.record.train, made.record.calibration, made.record.test) == (45, 5, 10)


def test_the_test_part_alone_trains_nothing() -> None:
    if not Path("/usr/share/datasets/fashion-mnist").is_dir():
        pytest.skip("needs the whole data set (Debian: dataset-fashion-mnist)")
    made = splits("fashion-mnist/test", calibration=1000)
    assert (made.record.train, made.record.calibration, made.record.test) == (0, 1000, 9000)
    assert not set(made.calibration.ids_N.tolist()) & set(made.test.ids_N.tolist())
    whole = splits("fashion-mnist")
    assert (whole.record.train, whole.record.calibration, whole.record.test) == (55_000, 5000, 10_000)


@pytest.mark.parametrize("count", [0, -1, 1600, 10_000])
def test_more_calibration_samples_than_there_are_is_one_line(count: int) -> None:
    assert "1 to 1599" in refusal("shipped", calibration=count)


@pytest.mark.parametrize("spec", ["", "mnist", "shipped/test", "folder:", "npz:", "https://example.org/x.npz"])
def test_what_is_no_data_set_is_one_line(spec: str) -> None:
    assert "one of fashion-mnist, cifar10, cifar100, svhn, shipped" in refusal(spec)


def test_a_seed_below_nought_is_one_line() -> None:
    assert "seed" in refusal("shipped", seed=-1)


# --- NumPy files


def test_a_numpy_file_of_objects_is_never_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "sprung",)  # type: ignore[return-value]

    x, _ = samples(4, 2, 2)
    path = tmp_path / "a.npz"
    np.savez(path, x=x, y=np.array([Trap()] * 4, object), allow_pickle=True)
    assert "pickled" in refusal(f"npz:{path}")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"x": np.zeros((4, 2, 2))}, "uint8 images"),
        ({"x": np.zeros((4, 2, 2, 2), np.uint8)}, "uint8 images"),
        ({"x": np.zeros((4, 0, 2), np.uint8)}, "uint8 images"),
        ({"y": np.zeros(3, int)}, "4 integer labels"),
        ({"y": np.zeros(4)}, "4 integer labels"),
        ({"y": np.full(4, -1)}, "labels from 0"),
        ({"y": np.full(4, 2), "classes": ["a", "b"]}, "labels from 0 to 1"),
    ],
)
def test_arrays_that_do_not_fit_are_one_line(tmp_path: Path, changed: dict[str, object], says: str) -> None:
    spec = npz(tmp_path / "a.npz", **{"x": np.zeros((4, 2, 2), np.uint8), "y": np.zeros(4, int)} | changed)
    assert says in refusal(spec)


@pytest.mark.parametrize("raw", [b"", b"no archive", b"PK\x03\x04 cut short"])
def test_files_that_are_none_are_one_line(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "a.npz"
    assert "readable" in refusal(f"npz:{path}")
    path.write_bytes(raw)
    assert "readable" in refusal(f"npz:{path}")
    single = io.BytesIO()
    np.save(single, np.zeros(3))
    path.write_bytes(single.getvalue())
    assert "a single array" in refusal(f"npz:{path}")
    npz(path, z=np.zeros(3))
    assert "x or images" in refusal(f"npz:{path}")


# --- folders


def picture(path: Path, size: tuple[int, int], colour: tuple[int, int, int] | int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L" if isinstance(colour, int) else "RGB", size, colour).save(path)


def test_a_folder_of_folders_with_and_without_a_test_part(tmp_path: Path) -> None:
    for number in range(10):
        for name, colour in (("dog", (255, 0, 0)), ("cat", (0, 0, 255))):
            picture(tmp_path / "flat" / name / f"{number}.png", (6, 4), colour)
            picture(tmp_path / "parts" / "train" / name / f"{number}.png", (6, 4), colour)
            picture(tmp_path / "parts" / "test" / name / f"{number}.png", (6, 4), colour)
    flat, parts = splits(f"folder:{tmp_path / 'flat'}"), splits(f"folder:{tmp_path / 'parts'}")
    assert flat.train.classes == parts.test.classes == ("cat", "dog")
    assert flat.train.images_NHWC.shape[1:] == (4, 6, 3)
    assert (flat.record.train, flat.record.calibration, flat.record.test) == (15, 1, 4)
    assert (parts.record.train, parts.record.calibration, parts.record.test) == (18, 2, 20)
    for part in (parts.train, parts.calibration, parts.test, flat.train):
        assert np.array_equal(part.images_NHWC[:, 0, 0, 0] == 255, part.labels_N == 1)


def test_images_of_many_sizes_need_a_shape(tmp_path: Path) -> None:
    for number in range(12):
        picture(tmp_path / "a" / f"{number}.png", (4 + number, 5), 7)
    assert "one size" in refusal(f"folder:{tmp_path}")
    made = splits(f"folder:{tmp_path}", shape=(3, 8, 8))
    assert made.train.images_NHWC.shape[1:] == (8, 8, 3)
    assert (made.train.images_NHWC == 7).all()


def test_folders_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    assert "a folder, got none" in refusal(f"folder:{tmp_path / 'nowhere'}")
    assert "a folder for each class" in refusal(f"folder:{tmp_path}")
    (tmp_path / "train" / "cat").mkdir(parents=True)
    assert "images (" in refusal(f"folder:{tmp_path}")
    (tmp_path / "train" / "cat" / "a.png").write_bytes(b"no picture")
    assert "a readable image" in refusal(f"folder:{tmp_path}")
    picture(tmp_path / "train" / "cat" / "a.png", (4, 4), 7)
    picture(tmp_path / "test" / "dog" / "a.png", (4, 4), 7)
    assert "the classes of the training part, got dog" in refusal(f"folder:{tmp_path}")


# --- what enters the model


@pytest.mark.parametrize("size", [(28, 28, 1), (20, 30, 1), (28, 28, 3), (9, 9, 3)])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 16, 20)])
def test_a_batch_is_bit_for_bit_its_images(size: tuple[int, ...], shape: tuple[int, int, int]) -> None:
    images, _ = samples(5, *size)
    spec = InputSpec(kind="image", shape=shape, mean=(0.3,) * shape[0], std=(0.2,) * shape[0])
    together = inputs_of(images, spec)
    assert together.flags.c_contiguous
    assert np.array_equal(together, np.stack([preprocess(image, spec) for image in images]))
    assert inputs_of(images[:0], spec).shape == (0, *shape)


def test_classes_are_found_by_name_and_a_model_without_names_has_the_data_sets() -> None:
    assert class_map(("Cat", "T-shirt/top", "emu"), ("tshirt_top", "cat")) == {0: 1, 1: 0}
    assert class_map(("a", "b"), ()) == {0: 0, 1: 1}
    assert class_map(("a", "a"), ("a", "a")) == {0: 0, 1: 1}
