"""The training loop: a run that was cut short ends like one that was not; caches and precision change little."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mdi_exit.data import shipped
from mdi_exit.data.pixels import inputs_of
from mdi_exit.errors import MdiExitError, UsageError

torch = pytest.importorskip("torch", reason="needs the extra 'torch'")

from mdi_exit.model.manifest import InputSpec  # noqa: E402 - only with torch
from mdi_exit.model.network import MobileNetV2Config, mobilenetv2  # noqa: E402
from mdi_exit.training import feed  # noqa: E402
from mdi_exit.training.checkpoint import write_checkpoint  # noqa: E402
from mdi_exit.training.loop import FitSettings, Step, fit  # noqa: E402
from mdi_exit.training.phases import Phase, Trainee  # noqa: E402
from mdi_exit.training.recipe import Recipe  # noqa: E402
from mdi_exit.training.record import EpochRow, TensorBoard, write_csv  # noqa: E402
from mdi_exit.training.samples import (  # noqa: E402
    Samples,
    draws,
    held_out,
    input_spec,
    mirrored_and_shifted,
    samples_of,
)
from mdi_exit.training.strategies.distill import DistillPhase  # noqa: E402
from mdi_exit.training.strategies.frozen import BackbonePhase, HeadsPhase  # noqa: E402
from mdi_exit.training.strategies.jei import AlternatingPhase, WarmUpPhase, jei_recipe  # noqa: E402
from mdi_exit.training.strategies.joint import JointPhase  # noqa: E402

SETTINGS = FitSettings(threads=1)
RECIPE = Recipe(epochs=2, batch_size=32, learning_rate=0.05)
SPEC = InputSpec(kind="image", shape=(1, 28, 28), mean=(0.286,), std=(0.353,))
WEIGHTS = (0.5, 0.5, 1.0)


class CutShortError(Exception):
    pass


def data(first: int = 0, count: int = 64) -> Samples:
    part = shipped()
    return samples_of(part.subset(part.ids_N[first : first + count]), SPEC)


def fresh(width: float = 0.25) -> Trainee:
    torch.manual_seed(0)
    return Trainee(mobilenetv2(MobileNetV2Config(width=width, exits=(1, 3, 8))), gated=True)


def joint(made: Trainee) -> list[Phase]:
    return [JointPhase(made, RECIPE, WEIGHTS)]


STRATEGIES: dict[str, Callable[[Trainee], list[Phase]]] = {
    "joint": joint,
    "distill": lambda made: [DistillPhase(made, RECIPE, WEIGHTS)],
    "frozen": lambda made: [BackbonePhase(made, RECIPE), HeadsPhase(made, RECIPE)],
    "jei": lambda made: [
        BackbonePhase(made, RECIPE),
        WarmUpPhase(made, jei_recipe(2)),
        AlternatingPhase(made, jei_recipe(2), (0.3, 0.6, 1.0)),
    ],
}


def same(one: Trainee, other: Trainee) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[key]) for key, value in one.state_dict().items())


def cut_after(epochs: int) -> Callable[[EpochRow], None]:
    def cut(row: EpochRow) -> None:
        if row.epoch == epochs:
            raise CutShortError

    return cut


# --- going on


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(strategy: str, tmp_path: Path) -> None:
    path, phases = tmp_path / "checkpoint.pt", STRATEGIES[strategy]
    straight = fresh()
    rows = fit(straight, phases(straight), data(), data(64), SETTINGS)
    for epochs in range(1, len(rows) + 1):
        path.unlink(missing_ok=True)
        with pytest.raises(CutShortError):
            fit(
                made := fresh(), phases(made), data(), data(64), SETTINGS, checkpoint=path, epoch_done=cut_after(epochs)
            )
        torch.manual_seed(99)  # whatever the new process drew before
        resumed, again = fresh(), []
        found = fit(resumed, phases(resumed), data(), data(64), SETTINGS, checkpoint=path, epoch_done=again.append)
        assert [row.epoch for row in again] == list(range(epochs + 1, len(rows) + 1))
        assert same(straight, resumed), f"cut after epoch {epochs}"
        assert [row.loss for row in found] == [row.loss for row in rows]
        assert [row.accuracies for row in found] == [row.accuracies for row in rows]


KILLED = """
import sys
sys.path[:0] = [{tests!r}]
import test_training as t
from pathlib import Path
made = t.fresh()
def told(row):
    print("epoch", row.epoch, flush=True)
recipe = t.Recipe(epochs=4, batch_size=32, learning_rate=0.05)
t.fit(made, [t.JointPhase(made, recipe, t.WEIGHTS)], t.data(), t.data(64), t.SETTINGS, checkpoint=Path({path!r}),
      epoch_done=told)
t.torch.save(made.state_dict(), {out!r})
"""


def start(path: Path, out: Path) -> subprocess.Popen[str]:
    code = KILLED.format(tests=str(Path(__file__).parent), path=str(path), out=str(out))
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ)


def test_a_process_that_is_killed_loses_at_most_an_epoch(tmp_path: Path) -> None:
    path, out = tmp_path / "checkpoint.pt", tmp_path / "state.pt"
    told = []
    with start(path, out) as process:
        for line in process.stdout:
            told.append(line.strip())
            if line.strip() == "epoch 2":
                process.send_signal(signal.SIGKILL)
                break
        assert process.wait(60) == -signal.SIGKILL
    assert told == ["epoch 1", "epoch 2"]
    assert not out.exists()
    with start(path, out) as process:
        rest = process.stdout.read().split("\n")
        assert process.wait(60) == 0
    assert rest[0] in ("epoch 3", "epoch 4")  # epoch 3 may have been over, and saved, before the signal came
    straight = fresh()
    recipe = Recipe(epochs=4, batch_size=32, learning_rate=0.05)
    fit(straight, [JointPhase(straight, recipe, WEIGHTS)], data(), data(64), SETTINGS)
    saved = torch.load(out, weights_only=True)
    assert all(torch.equal(value, saved[key]) for key, value in straight.state_dict().items())


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """That of a run which ended after its first epoch."""
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(CutShortError):
        fit(made := fresh(), joint(made), data(), data(64), SETTINGS, checkpoint=path, epoch_done=cut_after(1))
    return path


@pytest.mark.parametrize("other", ["network", "settings", "data", "recipe", "purpose"])
def test_a_checkpoint_of_another_purpose_is_not_gone_on_from(checkpoint: Path, other: str) -> None:
    made = fresh(width=0.5 if other == "network" else 0.25)
    phases = joint(made) if other != "recipe" else [JointPhase(made, Recipe(epochs=2, batch_size=16), WEIGHTS)]
    settings = FitSettings(threads=1, seed=1) if other == "settings" else SETTINGS
    done: list[EpochRow] = []
    fit(
        made, phases, data(first=64 if other == "data" else 0), data(64), settings, checkpoint=checkpoint,
        purpose={"strategy": "another"} if other == "purpose" else None, epoch_done=done.append,
    )  # fmt: skip
    assert [row.epoch for row in done] == [1, 2]


@pytest.mark.parametrize("raw", [b"", b"not a checkpoint", b"PK\x03\x04 cut off"])
def test_a_broken_checkpoint_is_one_line(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(raw)
    with pytest.raises(UsageError, match="remove it to start anew") as caught:
        fit(made := fresh(), joint(made), data(), data(64), SETTINGS, checkpoint=path)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save({"purpose": Path("/")}, path)  # any class that is not torch's own
    with pytest.raises(UsageError, match="checkpoint"):
        fit(made := fresh(), joint(made), data(), data(64), SETTINGS, checkpoint=path)


def test_a_checkpoint_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(MdiExitError, match=r"checkpoint .*: No such file"):
        write_checkpoint(tmp_path / "nowhere" / "checkpoint.pt", {})


# --- the loop itself


def test_training_lowers_the_loss() -> None:
    made = fresh()
    rows = fit(made, [JointPhase(made, Recipe(epochs=6, batch_size=32, learning_rate=0.05), WEIGHTS)], data(), data(64),
               SETTINGS)  # fmt: skip
    assert len(rows) == 6
    assert rows[-1].loss < rows[0].loss
    assert all(row.seconds > 0 for row in rows)
    assert rows[0].loss == pytest.approx(
        sum(w * loss for w, loss in zip(WEIGHTS, rows[0].losses, strict=True)), rel=1e-4
    )


def test_fewer_images_than_a_batch_are_one_batch() -> None:
    steps: list[Step] = []
    made = fresh()
    fit(made, [JointPhase(made, Recipe(epochs=1, batch_size=128), WEIGHTS)], data(count=10), data(64), SETTINGS,
        progress=steps.append)  # fmt: skip
    assert [(step.step, step.steps, step.done, step.total) for step in steps] == [(1, 1, 0, 1)]


def test_progress_counts_over_all_phases() -> None:
    steps: list[Step] = []
    made = fresh()
    fit(made, STRATEGIES["frozen"](made), data(), data(64), SETTINGS, progress=steps.append)
    assert [(step.phase, step.done, step.step, step.total) for step in steps] == [
        (phase, done, step, 4)
        for done, phase in enumerate(["backbone"] * 2 + ["heads"] * 2)
        for step in (1, 2)
    ]  # fmt: skip


def test_one_cycle_rises_and_falls_and_a_cosine_falls_to_its_least() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    for recipe, first, last in (
        (Recipe(learning_rate=1.0), 0.04, 0.0),
        (jei_recipe(1), 0.01, 2e-4),
    ):
        optimiser = recipe.optimiser([parameter])
        scheduler = recipe.scheduler(optimiser, 100)
        rates = []
        for _ in range(100):
            rates.append(optimiser.param_groups[0]["lr"])
            optimiser.step()
            scheduler.step()
        assert rates[0] == pytest.approx(first, rel=0.01)
        assert max(rates) == pytest.approx(recipe.learning_rate, rel=1e-3)
        assert optimiser.param_groups[0]["lr"] == pytest.approx(last, abs=1e-4)


def test_mixed_precision_learns_too() -> None:
    made = fresh()
    rows = fit(made, joint(made), data(), data(64), FitSettings(threads=1, precision="bfloat16"))
    plain = fit(other := fresh(), joint(other), data(), data(64), SETTINGS)
    assert rows[-1].loss == pytest.approx(plain[-1].loss, rel=0.05)
    assert rows[-1].loss != plain[-1].loss
    assert all(value.dtype != torch.bfloat16 for value in made.state_dict().values())


def test_taps_in_memory_train_heads_as_images_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the rounding to float16."""
    found = []
    for most in (feed.MOST_CACHED_BYTES, 0):
        monkeypatch.setattr(feed, "MOST_CACHED_BYTES", most)
        made = fresh()
        rows = fit(made, [HeadsPhase(made, RECIPE)], data(), data(64), SETTINGS)
        found.append((rows[-1].losses, torch.cat([one.flatten() for head in made.heads for one in head.parameters()])))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-3)
    torch.testing.assert_close(found[0][1], found[1][1], atol=2e-3, rtol=1e-2)


def test_features_beyond_float16_are_kept_in_float32() -> None:
    made = fresh()
    with torch.no_grad():
        made.network.layers[1].register_forward_hook(lambda _module, _inputs, output: output * 1e6)
    off = torch.autocast("cpu", enabled=False)
    kept = feed.feed_of(made, data(), torch.device("cpu"), lambda: off, frozen=True, augmentation="none")
    assert isinstance(kept, feed.TapFeed)
    assert kept.features[0].dtype == torch.float32


# --- samples


def test_inputs_are_those_of_the_running_source() -> None:
    part = shipped()
    rows = part.subset(part.ids_N[:5])
    for shape in ((1, 28, 28), (1, 20, 24), (3, 32, 32)):
        spec = input_spec(part, shape)
        (x_NCHW, labels_N) = next(samples_of(rows, spec).parts(torch.device("cpu"), 5))
        np.testing.assert_allclose(x_NCHW.numpy(), inputs_of(rows.images_NHWC, spec), atol=1e-5)
        assert labels_N.tolist() == rows.labels_N.tolist()
        assert len(spec.mean) == len(spec.std) == shape[0]


def test_images_are_mirrored_and_shifted_by_two_pixels_at_most() -> None:
    images = torch.zeros(64, 9, 9, 1, dtype=torch.uint8)
    images[:, 4, 3] = 200
    generator = torch.Generator().manual_seed(0)
    places = set()
    for _ in range(20):
        moved = mirrored_and_shifted(images, generator, mirror=True)
        assert moved.shape == images.shape
        assert moved.sum(dtype=torch.int64) == images.sum(dtype=torch.int64)
        places |= {tuple(place) for place in moved[..., 0].nonzero()[:, 1:].tolist()}
    assert {y for y, _ in places} == {2, 3, 4, 5, 6}
    assert {x for _, x in places} == {1, 2, 3, 4, 5, 6, 7}  # 3 or, mirrored, 5; and two either way


def test_an_epoch_draws_every_row_once_in_another_order() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = ([row for rows in draws(64, 16, generator) for row in rows.tolist()] for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(64))
    assert first != second


def test_what_is_held_out_is_in_neither_part_twice() -> None:
    whole = shipped()
    kept, out = held_out(whole, 300, 0)
    assert sorted([*kept.ids_N.tolist(), *out.ids_N.tolist()]) == list(range(2000))
    assert len(out) == 300
    assert held_out(whole, 300, 0)[1].ids_N.tolist() == out.ids_N.tolist() != held_out(whole, 300, 1)[1].ids_N.tolist()


# --- the record


def row(epoch: int, loss: float = 1.0) -> EpochRow:
    return EpochRow(epoch=epoch, phase="backbone", learning_rate=0.1, loss=loss, losses=(float("nan"), loss),
                    accuracies=(0.25, 0.5), seconds=2.0)  # fmt: skip


def test_the_csv_has_a_row_an_epoch_and_none_twice(tmp_path: Path) -> None:
    path = tmp_path / "training.csv"
    write_csv(path, [row(1)])
    write_csv(path, [row(1), row(2, 0.5)])
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [line["epoch"] for line in rows] == ["1", "2"]
    assert rows[1] == {
        "epoch": "2", "phase": "backbone", "learning_rate": "0.1", "loss": "0.50000", "loss_exit_0": "",
        "loss_exit_1": "0.50000", "accuracy_exit_0": "0.2500", "accuracy_exit_1": "0.5000", "seconds": "2.00",
    }  # fmt: skip
    assert list(tmp_path.iterdir()) == [path]


def test_tensorboard_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install tensorboard"):
        TensorBoard(tmp_path)


def test_tensorboard_gets_every_value_that_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written: list[tuple[str, float, int]] = []

    class Writer:
        def __init__(self, folder: str) -> None:
            assert folder == str(tmp_path)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def close(self) -> None:
            written.append(("closed", 0.0, 0))

    import types

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    board = TensorBoard(tmp_path)
    board.add(row(3))
    board.close()
    assert written == [
        ("learning_rate", 0.1, 3), ("loss", 1.0, 3), ("loss/exit_1", 1.0, 3), ("accuracy/exit_0", 0.25, 3),
        ("accuracy/exit_1", 0.5, 3), ("closed", 0.0, 0),
    ]  # fmt: skip
