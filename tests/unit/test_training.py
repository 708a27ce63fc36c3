"""Training: a run that was cut short ends like one that was not, and what cannot work is said before the first epoch."""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mdi_exit.data import shipped
from mdi_exit.errors import UsageError
from mdi_exit.model.artifact import Artifact

torch = pytest.importorskip("torch", reason="needs the extra 'torch'")

from mdi_exit.model.network import MobileNetV2Config, mobilenetv2  # noqa: E402 - only with torch
from mdi_exit.training import command  # noqa: E402
from mdi_exit.training.joint import TrainConfig, exit_accuracies, normalised, train_joint  # noqa: E402

CONFIG = TrainConfig(epochs=2, batch_size=32, learning_rate=0.05, threads=1)
COUNT = 64


class CutShortError(Exception):
    pass


def data(first: int = 0) -> tuple[Any, Any]:
    dataset = shipped()
    part = slice(first, first + COUNT)
    return normalised(dataset.images_NHWC[part], (0.286,), (0.353,)), torch.from_numpy(dataset.labels_N[part])


def fresh(width: float = 0.25) -> Any:
    torch.manual_seed(0)
    return mobilenetv2(MobileNetV2Config(width=width))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """That of a run which ended after its first epoch."""

    def cut(epoch: int) -> None:
        raise CutShortError

    path = tmp_path / "checkpoint.pt"
    with pytest.raises(CutShortError):
        train_joint(fresh(), *data(), CONFIG, checkpoint=path, epoch_done=cut)
    return path


def epochs_run(network: Any, x: Any, y: Any, config: TrainConfig, checkpoint: Path) -> list[int]:
    done: list[int] = []
    train_joint(network, x, y, config, checkpoint=checkpoint, epoch_done=done.append)
    return done


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(checkpoint: Path) -> None:
    straight, resumed = fresh(), fresh()
    train_joint(straight, *data(), CONFIG)
    torch.manual_seed(99)  # whatever the new process drew before
    assert epochs_run(resumed, *data(), CONFIG, checkpoint) == [1]
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert epochs_run(fresh(), *data(), CONFIG, checkpoint) == []  # nothing is left to do


def test_training_lowers_the_loss() -> None:
    losses = train_joint(fresh(), *data(), TrainConfig(epochs=6, batch_size=32, learning_rate=0.05, threads=1))
    assert len(losses) == 6
    assert losses[-1] < losses[0]


def test_a_checkpoint_of_another_network_configuration_or_data_is_not_gone_on_from(checkpoint: Path) -> None:
    saved = checkpoint.read_bytes()
    for network, (x, y), config in (
        (fresh(width=0.5), data(), CONFIG),
        (fresh(), data(), TrainConfig(epochs=2, batch_size=32, learning_rate=0.05, threads=1, seed=1)),
        (fresh(), data(first=COUNT), CONFIG),
    ):
        checkpoint.write_bytes(saved)
        assert epochs_run(network, x, y, config, checkpoint) == [0, 1]


@pytest.mark.parametrize("raw", [b"", b"not a checkpoint", b"PK\x03\x04 cut off"])
def test_a_broken_checkpoint_is_one_line(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(raw)
    with pytest.raises(UsageError, match="remove it to start anew") as caught:
        train_joint(fresh(), *data(), CONFIG, checkpoint=path)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save({"purpose": Path("/")}, path)  # any class that is not torch's own
    with pytest.raises(UsageError, match="checkpoint"):
        train_joint(fresh(), *data(), CONFIG, checkpoint=path)


def test_fewer_images_than_a_batch_are_one_batch() -> None:
    config = TrainConfig(epochs=1, batch_size=128, threads=1, limit=10)
    assert len(train_joint(fresh(), *data(), config)) == 1


def test_normalised_is_the_artifacts_formula() -> None:
    images = shipped().images_NHWC[:2]
    x_NCHW = normalised(images, (0.5,), (0.25,))
    np.testing.assert_allclose(x_NCHW[:, 0].numpy(), (images[..., 0] / 255 - 0.5) / 0.25, atol=1e-5)


def test_exit_accuracies_counts_every_image() -> None:
    network, dataset = fresh(), shipped().subset(np.arange(501))
    x = normalised(dataset.images_NHWC, (0.286,), (0.353,))
    shares = exit_accuracies(network, dataset, x)
    assert len(shares) == 5
    with torch.inference_mode():
        last = network(x)[-1].argmax(1).numpy()
    assert shares[-1] == np.mean(last == dataset.labels_N)


# --- the command


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(int(dim).to_bytes(4, "big") for dim in array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    folder, dataset = tmp_path / "data", shipped()
    folder.mkdir()
    for stem, part in (("train", slice(0, 300)), ("t10k", slice(300, 400))):
        write_idx(folder / f"{stem}-images-idx3-ubyte.gz", dataset.images_NHWC[part, ..., 0])
        write_idx(folder / f"{stem}-labels-idx1-ubyte.gz", dataset.labels_N[part])
    return folder


def arguments(data_dir: Path, out: Path, *more: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    flags = ["--out", str(out), "--data-dir", str(data_dir), "--epochs", "1", "--width", "0.25", "--threads", "1"]
    return parser.parse_args([*flags, "--limit", "256", *more])


def test_the_command_makes_folder_artifact_and_record(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "not" / "there" / "yet"
    assert command.run(arguments(data_dir, out)) == 0
    printed = capsys.readouterr().out
    assert "epoch 1 of 1: test accuracy by exit" in printed
    assert "\x1b" not in printed  # plain lines where there is no terminal
    artifact = Artifact.open(out)
    record = artifact.manifest.training
    assert (record["dataset"], record["images"], record["test_images"]) == ("fashion-mnist", 256, 100)
    assert record["config"]["seed"] == 0
    assert record["epochs_timed"] == len(record["losses"]) == 1
    assert record["seconds"] > 0
    assert record["torch"] == torch.__version__
    assert [spec.accuracy for spec in artifact.manifest.exits] == record["accuracy_by_exit"]
    pixels = shipped().images_NHWC[:300] / 255
    assert artifact.manifest.input.mean == (round(float(pixels.mean()), 4),)
    assert artifact.manifest.input.std == (round(float(pixels.std()), 4),)
    assert [path.name for path in out.parent.iterdir()] == ["yet"]  # no checkpoint left
    for spec in artifact.manifest.exits:
        assert f"{100 * spec.accuracy:.2f} %" in printed
    rows = [line for line in printed.splitlines() if line.strip("│ ").endswith(" %") and "│" in line]
    shares = [int(row.split("│")[4].strip(" %")) for row in rows]
    assert shares == sorted(shares)
    assert (len(shares), shares[-1]) == (5, 100)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--epochs", "0"), "--epochs"),
        (("--width", "nan"), "--width"),
        (("--width", "inf"), "--width"),
        (("--batch-size", "-1"), "--batch-size"),
        (("--learning-rate", "0"), "--learning-rate"),
        (("--limit", "0"), "--limit"),
        (("--limit", "-5"), "--limit"),
        (("--seed", "-1"), "--seed"),
        (("--model", "resnet"), "--model"),
        (("--dataset", "imagenet"), "data set"),
    ],
)
def test_wrong_flags_are_one_line(data_dir: Path, tmp_path: Path, flags: tuple[str, str], says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        command.run(arguments(data_dir, tmp_path / "model", *flags))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("out", ["taken", "file", "file/below"])
def test_a_folder_that_cannot_be_used_is_refused_before_training(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    def untimely(*_: object) -> None:
        raise AssertionError("trained first")

    monkeypatch.setattr(command, "_train", untimely)
    (tmp_path / "file").write_text("precious")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("precious")
    with pytest.raises(UsageError, match="output folder"):
        command.run(arguments(data_dir, tmp_path / out))


def test_a_folder_given_as_a_dot_is_the_current_one(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path / "model")
    assert command.run(arguments(data_dir, Path(), "--limit", "32")) == 0
    assert Artifact.open(tmp_path / "model").manifest.training["images"] == 32
