from __future__ import annotations

import gzip
import logging
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mdi_exit.data import shipped
from mdi_exit.errors import MdiExitError, UsageError
from mdi_exit.model.artifact import DEFAULT_MODEL, Artifact
from mdi_exit.model.manifest import ExitSpec, GraphFile, InputSpec, LayerSpec, Manifest
from source.inputs import open_input, preprocess

GREY = InputSpec(kind="image", shape=(1, 28, 28), mean=(0.286,), std=(0.353,))
COLOUR = InputSpec(kind="image", shape=(3, 8, 6), mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125))
FASHION = shipped().classes


def manifest(spec: InputSpec = GREY, labels: tuple[str, ...] = FASHION) -> Manifest:
    graph = GraphFile(file="layer-0.onnx", bytes=1, sha256="0" * 64)
    return Manifest(
        format=1, name="m", input=spec, labels=labels,
        layers=(LayerSpec(graph=graph, in_shape=spec.shape, out_shape=(1,), macs=1, params=0),),
        exits=(ExitSpec(layer=0, graph=graph, macs=1, params=0),),
    )  # fmt: skip


def picture(path: Path, colour: int | tuple[int, ...] = 7, size: tuple[int, int] = (28, 28), mode: str = "L") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)
    return path


def pixels_of(path: Path) -> NDArray[np.uint8]:
    (sample,) = open_input(str(path.parent), manifest())
    return sample.raw


# --- data sets


def test_shipped_gives_its_real_images_with_their_truth() -> None:
    found = open_input("shipped", manifest())
    samples = list(found)
    data = shipped()
    assert len(found) == len(samples) == len(data) >= 2000
    assert [sample.truth for sample in samples] == data.labels_N.tolist()
    assert np.array_equal(samples[17].raw, data.images_NHWC[17])
    assert len({sample.id for sample in samples}) == len(samples)


def test_a_count_takes_the_first_and_a_limit_ends_the_input() -> None:
    assert [sample.id for sample in open_input("shipped:3", manifest())] == ["shipped/0", "shipped/1", "shipped/2"]
    assert len(list(open_input("shipped:3", manifest(), limit=2))) == 2
    assert len(list(open_input("shipped:3", manifest(), limit=9))) == 3


def test_cycling_repeats_with_numbered_ids_until_the_limit() -> None:
    found = open_input("shipped:2", manifest(), cycle=True, limit=5)
    samples = list(found)
    names = ["shipped/0", "shipped/1", "shipped/0#2", "shipped/1#2", "shipped/0#3"]
    assert [sample.id for sample in samples] == names
    assert samples[0].truth == samples[2].truth
    assert list(islice(open_input("shipped:1", manifest(), cycle=True), 40))[-1].id == "shipped/0#40"


def test_a_shuffle_is_reproducible_and_loses_nothing() -> None:
    def order(seed: int | None) -> list[tuple[str, int | None]]:
        return [(sample.id, sample.truth) for sample in open_input("shipped:50", manifest(), shuffle_seed=seed)]

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert order(1) != order(None)
    assert sorted(order(1)) == sorted(order(None))


def test_truth_is_the_models_class_of_that_name_whatever_its_order(caplog: pytest.LogCaptureFixture) -> None:
    turned = tuple(reversed(FASHION))
    plain = [sample.truth for sample in open_input("shipped:30", manifest())]
    mapped = [sample.truth for sample in open_input("shipped:30", manifest(labels=turned))]
    assert [turned[truth] for truth in mapped if truth is not None] == [FASHION[t] for t in plain if t is not None]
    assert [sample.truth for sample in open_input("shipped:30", manifest(labels=()))] == plain
    assert not caplog.records


def test_a_model_of_other_classes_makes_the_truth_unknown_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        samples = list(open_input("shipped:5", manifest(labels=("cat", "dog"))))
    assert {sample.truth for sample in samples} == {None}
    assert "accuracy will not be known" in caplog.text


def test_a_local_data_set_is_read_from_its_own_files(tmp_path: Path) -> None:
    images = np.arange(3 * 28 * 28, dtype=np.uint64).astype(np.uint8).reshape(3, 28, 28)
    header = b"\0\0\x08\x03" + b"".join(dim.to_bytes(4, "big") for dim in images.shape)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + images.tobytes()))
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(
        gzip.compress(b"\0\0\x08\x01" + (3).to_bytes(4, "big") + bytes([9, 0, 4]))
    )
    samples = list(open_input("fashion-mnist", manifest(), data_dir=tmp_path))
    assert [sample.truth for sample in samples] == [9, 0, 4]
    assert [sample.id for sample in samples] == ["fashion-mnist/0", "fashion-mnist/1", "fashion-mnist/2"]
    assert np.array_equal(samples[2].raw[..., 0], images[2])


# --- folders


def test_a_folder_is_read_in_order_and_sub_folders_name_the_truth(tmp_path: Path) -> None:
    picture(tmp_path / "Trouser" / "b.png", 1)
    picture(tmp_path / "t-shirt_TOP" / "day 2" / "x.jpg", 2)
    picture(tmp_path / "unsorted" / "c.bmp", 3)
    picture(tmp_path / "a.PNG", 4)
    (tmp_path / "notes.txt").write_text("not an image")
    samples = list(open_input(str(tmp_path), manifest()))
    assert [(sample.id, sample.truth) for sample in samples] == [
        ("Trouser/b.png", 1),
        ("a.PNG", None),
        ("t-shirt_TOP/day 2/x.jpg", 0),
        ("unsorted/c.bmp", None),
    ]
    assert [int(sample.raw.flat[0]) for sample in samples] == [1, 4, 2, 3]


def test_labels_that_read_alike_name_no_truth(tmp_path: Path) -> None:
    picture(tmp_path / "C" / "a.png")
    (sample,) = open_input(str(tmp_path), manifest(labels=("C", "C++")))
    assert sample.truth is None


def test_bad_image_files_are_passed_over_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = picture(tmp_path / "good.png", size=(60, 60), mode="RGB", colour=(1, 2, 3)).read_bytes()
    (tmp_path / "empty.png").touch()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    for number in range(5):
        (tmp_path / f"noise{number}.jpg").write_bytes(b"\xff\xd8\xff" + bytes(range(200)))
    found = open_input(str(tmp_path), manifest(), cycle=True, limit=3)
    with caplog.at_level(logging.WARNING):
        assert [sample.id for sample in found] == ["good.png", "good.png#2", "good.png#3"]
    assert found.skipped == 7
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 4
    assert "empty.png passed over" in lines[0]
    assert lines[-1].endswith("7 files could not be read")


@pytest.mark.parametrize("cycle", [False, True])
def test_a_folder_of_nothing_but_bad_files_fails_instead_of_ending_quietly(tmp_path: Path, cycle: bool) -> None:
    (tmp_path / "bad.png").write_bytes(b"nothing")
    with pytest.raises(MdiExitError, match="none of its 1 files can be read"):
        next(iter(open_input(str(tmp_path), manifest(), cycle=cycle)))


def test_image_files_of_any_kind_become_eight_bit_grey_or_colour(tmp_path: Path) -> None:
    deep = np.full((4, 5), 0xAB00, np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert pixels_of(tmp_path / "deep.png").tolist() == [[0xAB] * 5] * 4

    see_through = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    (tmp_path / "clear").mkdir()
    see_through.save(tmp_path / "clear" / "a.png")
    assert pixels_of(tmp_path / "clear" / "a.png").tolist() == [[[255, 255, 255]] * 2] * 2

    turned = Image.new("RGB", (6, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn right
    (tmp_path / "turned").mkdir()
    turned.save(tmp_path / "turned" / "a.jpg", exif=exif)
    assert pixels_of(tmp_path / "turned" / "a.jpg").shape == (6, 3, 3)

    (tmp_path / "flat").mkdir()
    Image.new("P", (3, 3), 0).save(tmp_path / "flat" / "a.gif")
    assert pixels_of(tmp_path / "flat" / "a.gif").shape == (3, 3, 3)


def test_a_picture_of_absurd_size_is_a_bad_file(tmp_path: Path) -> None:
    Image.new("1", (9000, 8000)).save(tmp_path / "huge.png")
    picture(tmp_path / "small.png")
    found = open_input(str(tmp_path), manifest())
    assert [sample.id for sample in found] == ["small.png"]
    assert found.skipped == 1


# --- mistakes


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        (
            "imagenet",
            "input: expected one of shipped|fashion-mnist|cifar10|cifar100|svhn[:N], spam-assassin[:N], test[:N], text:FILE, "
            "wav:DIR, DIR, FILE.mp4, camera[:N|:DEVICE], microphone[:N|:NAME], rtsp://..., watch:DIR, mqtt:TOPIC, requests, "
            "got 'imagenet'",
        ),
        ("shipped:", "input: expected NAME or NAME:N with N of at least 1, got 'shipped:'"),
        ("shipped:0", "input: expected NAME or NAME:N with N of at least 1, got 'shipped:0'"),
        ("cifar10:all", "input: expected NAME or NAME:N with N of at least 1, got 'cifar10:all'"),
    ],
)
def test_an_unknown_spec_is_refused(spec: str, line: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_input(spec, manifest())
    assert str(caught.value) == line


def test_an_empty_folder_and_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"expected a folder with images .*which has none"):
        open_input(str(tmp_path), manifest())
    with pytest.raises(UsageError, match="which is a file"):
        open_input(str(picture(tmp_path / "a.png")), manifest())


def test_a_model_that_does_not_take_images_is_refused() -> None:
    spec = InputSpec(kind="image", shape=(4, 8, 8), mean=(0.0,) * 4, std=(1.0,) * 4)
    with pytest.raises(UsageError, match="model input: expected 1 or 3 channels, to be made of images, got 4"):
        open_input("shipped", manifest(spec))


# --- preprocessing


def test_preprocessing_scales_by_the_declared_mean_and_deviation() -> None:
    pixels = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3)
    x_CHW = preprocess(pixels, COLOUR)
    assert x_CHW.dtype == np.float32
    assert x_CHW.flags.c_contiguous
    expected = (pixels / 255 - np.array(COLOUR.mean)) / np.array(COLOUR.std)
    assert x_CHW == pytest.approx(expected.transpose(2, 0, 1), abs=1e-6)


def test_a_grey_image_gives_the_same_as_two_or_three_dimensions() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
    assert np.array_equal(preprocess(pixels, GREY), preprocess(pixels[..., None], GREY))


def test_colour_and_grey_are_converted() -> None:
    red = np.zeros((28, 28, 3), np.uint8)
    red[..., 0] = 255
    luma = preprocess(red, GREY) * 0.353 + 0.286
    assert luma == pytest.approx(np.full((1, 28, 28), 0.299), abs=0.003)

    grey = np.full((8, 6), 51, np.uint8)
    x_CHW = preprocess(grey, COLOUR)
    assert x_CHW[:, 0, 0] == pytest.approx([(0.2 - 0.1) / 0.5, 0.0, (0.2 - 0.3) / 0.125], abs=1e-6)


@pytest.mark.parametrize("shape", [(64, 48, 3), (5, 91), (1, 1, 1), (28, 29)])
def test_other_sizes_are_resized_whole(shape: tuple[int, ...]) -> None:
    x_CHW = preprocess(np.full(shape, 255, np.uint8), GREY)
    assert x_CHW == pytest.approx(np.full((1, 28, 28), (1 - 0.286) / 0.353), abs=1e-5)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((4, 4), np.float32),
        np.zeros((2, 4, 4, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_pixels_that_are_no_image_are_refused(pixels: NDArray[np.uint8]) -> None:
    with pytest.raises(UsageError, match="image: expected uint8 pixels"):
        preprocess(pixels, GREY)


def test_every_shipped_image_is_what_the_shipped_model_takes() -> None:
    spec = Artifact.open(DEFAULT_MODEL).manifest.input
    rows = [preprocess(sample.raw, spec) for sample in open_input("shipped:200", manifest())]
    assert {row.shape for row in rows} == {(1, 28, 28)}
    assert abs(float(np.mean(rows))) < 0.1
