"""``mdi-exit train``: what it makes of each strategy and model, and what cannot work is said before the first epoch."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mdi_exit.config import run_program
from mdi_exit.data import shipped, splits
from mdi_exit.errors import UsageError
from mdi_exit.model.artifact import Artifact
from mdi_exit.outcomes import outcomes

torch = pytest.importorskip("torch", reason="needs the extra 'torch'")

from mdi_exit.engine.torch import TorchEngine, network_of  # noqa: E402 - only with torch
from mdi_exit.training import command  # noqa: E402
from mdi_exit.training.costs import Costs, costs_of  # noqa: E402
from mdi_exit.workbench.partition import main as partition  # noqa: E402

TINY = (
    "--data",
    "shipped",
    "--width",
    "0.25",
    "--threads",
    "1",
    "--epochs",
    "1",
    "--limit",
    "192",
    "--validation",
    "64",
)
SHORT = ("--backbone-epochs", "1", "--warm-up-epochs", "1")

MINE = """
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

def transformer():
    sizes = {"image_size": 32, "patch_size": 8, "num_layers": 3, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
    return VisionTransformer(**sizes, num_classes=10)

def network():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 3, stride=2, padding=1),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    )
"""


def made(out: Path, *flags: str) -> Artifact:
    assert command.main(["--out", str(out), *TINY, *flags]) == 0
    return Artifact.open(out)


def untimely(*_: object, **__: object) -> None:
    raise AssertionError("trained first")


def test_the_command_makes_folder_artifact_and_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "not" / "there" / "yet"
    artifact = made(out)
    printed = capsys.readouterr().out
    assert re.search(r"epoch 1 of 1, joint: validation accuracy by exit( \d+\.\d){5} %", printed)
    assert "\x1b" not in printed  # plain lines where there is no terminal
    record = artifact.manifest.training
    assert (record["dataset"], record["images"], record["validation_images"], record["test_images"]) == (
        "shipped", 192, 64, 400,
    )  # fmt: skip
    assert (record["strategy"], record["config"]["seed"], record["phases"]) == ("joint", 0, ["joint: 1 epochs"])
    assert record["exit_weights"] == [0.5, 0.5, 0.5, 0.5, 1.0]
    assert record["torch"] == torch.__version__
    assert [spec.accuracy for spec in artifact.manifest.exits] == record["accuracy_by_exit"]
    assert artifact.manifest.data == splits("shipped").record
    assert [path.name for path in out.parent.iterdir()] == ["yet"]  # no checkpoint left
    assert (out / command.PICTURE_FILE).read_bytes().startswith(b"\x89PNG")
    with (out / command.RECORD_FILE).open() as file:
        (row,) = csv.DictReader(file)
    assert (row["epoch"], row["phase"]) == ("1", "joint")
    for spec in artifact.manifest.exits:
        assert f"{100 * spec.accuracy:.2f} %" in printed
    rows = [line for line in printed.splitlines() if line.strip("│ ").endswith(" %") and "│" in line]
    shares = [int(line.split("│")[4].strip(" %")) for line in rows]
    assert shares == sorted(shares)
    assert (len(shares), shares[-1]) == (5, 100)


def test_the_accuracies_are_those_of_the_artifact_on_the_test_set(tmp_path: Path) -> None:
    artifact = made(tmp_path / "model")
    found = outcomes(artifact, splits("shipped").test)
    right_SN = found.logits_SNK.argmax(2) == found.truth_N
    assert right_SN.mean(1).tolist() == pytest.approx([spec.accuracy for spec in artifact.manifest.exits], abs=0.003)


def test_mean_and_deviation_are_of_the_training_images(tmp_path: Path) -> None:
    artifact = made(tmp_path / "model")
    pixels = splits("shipped").train.images_NHWC / 255
    assert artifact.manifest.input.mean == (round(float(pixels.mean()), 4),)
    assert artifact.manifest.input.std == (round(float(pixels.std()), 4),)


def test_a_gated_artifact_has_gates_and_thresholds_and_runs_only_where_gates_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = made(tmp_path / "model", "--strategy", "jei", *SHORT)
    assert "gates learn in 0 batches only" in capsys.readouterr().out
    manifest = artifact.manifest
    assert manifest.calibration.measure == "gate"
    assert manifest.calibration.threshold == 0.5
    *early, last = manifest.exits
    assert all(spec.gate is not None and spec.threshold == 0.5 for spec in early)
    assert (last.gate, last.threshold) == (None, None)
    assert manifest.plan.inclusive
    assert manifest.plan.threshold_at(0, 0.5) == 0.5
    assert manifest.training["phases"] == ["backbone: 1 epochs", "warm-up: 1 epochs", "alternating: 1 epochs"]
    with pytest.raises(UsageError, match="a model without gates"):
        TorchEngine(str(artifact.folder))


def test_a_given_backbone_is_kept_bit_for_bit(tmp_path: Path) -> None:
    joint = made(tmp_path / "joint", "--exits", "2,5")
    for strategy in ("frozen", "jei"):
        other = made(tmp_path / strategy, "--exits", "2,5", "--strategy", strategy, "--from", str(joint.folder), *SHORT)
        assert "backbone" not in str(other.manifest.training["phases"])
        before, after = network_of(joint).state_dict(), network_of(other).state_dict()
        kept = [key for key in before if not key.startswith(("exits.2", "exits.5"))]
        assert all(torch.equal(before[key], after[key]) for key in kept)
        assert not torch.equal(before["exits.2.3.weight"], after["exits.2.3.weight"])


def test_without_a_model_it_is_that_of_the_artifact_to_begin_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "begun_with.py").write_text(MINE)
    numbers = ("--mean", "0.25", "--std", "0.75")
    assert partition(["begun_with:network", "--input-shape", "1x28x28", "--out", "cut", *numbers]) == 0
    few = ("--data", "shipped", "--limit", "64", "--validation", "16", "--epochs", "1", "--threads", "1")
    assert command.main(["--from", "cut", "--out", "trained", "--strategy", "frozen", *few]) == 0
    cut, trained = Artifact.open("cut"), Artifact.open("trained")
    assert "begun_with-network" in capsys.readouterr().out
    assert [layer.name for layer in trained.manifest.layers] == [layer.name for layer in cut.manifest.layers]
    assert (trained.manifest.input.mean, trained.manifest.input.std) == ((0.25,), (0.75,))
    assert len(trained.manifest.exits) == min(4, len(cut.manifest.layers))
    before, after = network_of(cut).layers.state_dict(), network_of(trained).layers.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_an_artifact_of_other_classes_is_nothing_to_begin_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "of_seven.py").write_text(MINE.replace("nn.Linear(8, 10)", "nn.Linear(8, 7)"))
    assert partition(["of_seven:network", "--input-shape", "1,28,28", "--out", "cut"]) == 0
    with pytest.raises(UsageError, match="expected an artifact of 10 classes, as the data has, got 7"):
        command.main(["--from", "cut", "--out", "trained", "--data", "shipped"])
    assert not (tmp_path / "trained").exists()


@pytest.mark.parametrize("data", ["wav:words", "voices:words"])
def test_who_trains_on_sound_is_told_the_tool_for_it(tmp_path: Path, data: str) -> None:
    with pytest.raises(UsageError, match="mdi-exit train-speech"):
        command.main(["--data", data, "--out", str(tmp_path / "made")])


@pytest.mark.parametrize(
    ("model", "more", "exits"),
    [
        ("small_resnet18", ("--width", "0.125"), 4),
        ("mine_to_train:network", (), 2),
        ("mine_to_train:transformer", ("--input-shape", "3,32,32"), 3),
        ("mine_to_train:transformer", ("--input-shape", "3,32,32", "--strategy", "jei", *SHORT), 3),
        ("shufflenet_v2_x0_5", ("--input-shape", "3,32,32"), 3),
    ],
)
def test_any_partitioned_model_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, more: tuple[str, ...], exits: int
) -> None:
    (tmp_path / "mine_to_train.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    flags = [
        "--out",
        str(tmp_path / "model"),
        "--model",
        model,
        "--exits",
        str(exits),
        "--dataset",
        "shipped",
        "--limit",
        "64",
    ]
    assert command.main([*flags, "--validation", "16", "--epochs", "1", "--threads", "1", *more]) == 0
    artifact = Artifact.open(tmp_path / "model")
    assert len(artifact.manifest.exits) == exits
    part = shipped().subset(np.arange(8))
    found = outcomes(artifact, part)
    network = network_of(artifact)
    from mdi_exit.data.pixels import inputs_of

    with torch.inference_mode():
        x_NCHW = torch.from_numpy(inputs_of(part.images_NHWC, artifact.manifest.input))
        expected = torch.stack(network(x_NCHW)).numpy()
    np.testing.assert_allclose(found.logits_SNK, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--epochs", "0"), "--epochs"),
        (("--width", "nan"), "--width"),
        (("--width", "inf"), "--width"),
        (("--batch-size", "-1"), "--batch-size"),
        (("--learning-rate", "0"), "--learning-rate"),
        (("--limit", "0"), "--limit"),
        (("--seed", "-1"), "--seed"),
        (("--model", "resnet"), "width"),
        (("--data", "imagenet"), "data"),
        (("--dataset", "fashion-mnist/test"), "data"),
        (("--strategy", "guess"), "--strategy"),
        (("--exits", "0"), "exits"),
        (("--exits", "1"), "--exits"),
        (("--exits", "99"), "exits"),
        (("--exits", "3,1"), "--exits"),
        (("--exits", "a,b"), "--exits"),
        (("--exits", "1,99"), "exits"),
        (("--exit-weights", "1,2"), "--exit-weights"),
        (("--input-shape", "28,28"), "--input-shape"),
        (("--input-shape", "2,28,28"), "--input-shape"),
        (("--validation", "5000"), "--validation"),
        (("--teaching-share", "1.5"), "--teaching-share"),
        (("--temperature", "0"), "--temperature"),
        (("--cost-weight", "-1"), "--cost-weight"),
        (("--strategy", "frozen", "--backbone-epochs", "0"), "--backbone-epochs"),
        (("--from", "nowhere"), "model"),
        (("--from", "fashion-mnist-mobilenetv2"), "--from"),  # of another width
        (("--augment", "blur"), "--augment"),
        (("--precision", "int8"), "--precision"),
        (("stray",), "stray"),
    ],
)
def test_wrong_flags_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], says: str
) -> None:
    monkeypatch.setattr(command, "fit", untimely)
    with pytest.raises(UsageError, match=says) as caught:
        made(tmp_path / "model", *flags)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("out", ["taken", "file", "file/below"])
def test_a_folder_that_cannot_be_used_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    monkeypatch.setattr(command, "fit", untimely)
    (tmp_path / "file").write_text("precious")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("precious")
    with pytest.raises(UsageError, match="output folder"):
        made(tmp_path / out)


def test_a_folder_given_as_a_dot_is_the_current_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path / "model")
    assert command.main(["--out", ".", *TINY, "--limit", "32"]) == 0
    assert Artifact.open(tmp_path / "model").manifest.training["images"] == 32


def test_a_run_that_broke_off_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "model"

    def broken(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "export_artifact", broken)
        with pytest.raises(KeyboardInterrupt):
            made(out, "--epochs", "2")
    assert {path.name for path in tmp_path.iterdir()} == {"model.checkpoint.pt", "model.training.csv"}
    assert "epoch 2 of 2" in capsys.readouterr().out
    made(out, "--epochs", "2")
    assert "epoch" not in capsys.readouterr().out  # nothing was left to train
    assert len((out / command.RECORD_FILE).read_text().splitlines()) == 3


def test_check_says_where_each_setting_comes_from(capsys: pytest.CaptureFixture[str]) -> None:
    status = run_program("mdi-exit train", lambda: command.main(["--out", "x", "--strategy", "jei", "--check"]))
    assert status == 0
    assert re.search(r"strategy\s.*jei.*flag", capsys.readouterr().out)


def test_the_record_is_plain_json(tmp_path: Path) -> None:
    artifact = made(tmp_path / "model", "--strategy", "distill")
    told: dict[str, Any] = json.loads(artifact.manifest_bytes)["training"]
    assert (told["strategy"], told["temperature"], told["share"]) == ("distill", 3.0, 0.5)


# --- costs


def test_exits_are_spread_evenly_by_cost(tmp_path: Path) -> None:
    """The last layers of this network cost most: its exits lie late in it."""
    artifact = made(tmp_path / "model", "--exits", "3", "--limit", "32")
    macs = np.cumsum([layer.macs for layer in artifact.manifest.layers])
    first, second, last = (spec.layer for spec in artifact.manifest.exits)
    assert last == 8
    assert first == np.abs(macs - macs[-1] / 3).argmin()
    assert second == np.abs(macs - 2 * macs[-1] / 3).argmin()


def test_costs_count_layers_and_the_heads_on_the_way() -> None:
    costs = Costs((10, 20, 30), (0, 2), (1, 4))
    assert costs.to_exits == (11, 65)
    assert costs.shares == (11 / 65, 1.0)
    shipped_one = Artifact.open("fashion-mnist-mobilenetv2")
    counted = costs_of(network_of(shipped_one), (1, 28, 28))
    assert counted.layers == tuple(layer.macs for layer in shipped_one.manifest.layers)
    assert counted.heads == tuple(spec.macs for spec in shipped_one.manifest.exits)
