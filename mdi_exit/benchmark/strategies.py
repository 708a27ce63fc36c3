"""``mdi-exit benchmark strategies``: joint, frozen, distilled and JEI-DNN exits at equal cost, over several seeds.

One architecture, so one scale of cost. For each seed: the network and its exits are trained jointly, and distilled; a
backbone is trained once and given heads twice, frozen ones and JEI-DNN's with its gates (for several cost weights λ).
Every threshold, and every λ, is chosen on the calibration samples, which no training saw, and scored on the test set.
Each finished pair of seed and strategy is kept, so that a run that was cut short goes on.
"""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import torch
from torch import nn

from mdi_exit.data import splits
from mdi_exit.errors import UsageError
from mdi_exit.model.backbones import BACKBONES, layers_of
from mdi_exit.model.build import at_equal_cost
from mdi_exit.model.heads import head_for
from mdi_exit.model.manifest import Measure
from mdi_exit.model.network import MultiExitNetwork
from mdi_exit.training.costs import Costs, costs_of
from mdi_exit.training.curve import Curve, curve_of, thresholds_for, trace_of
from mdi_exit.training.feed import ImageFeed
from mdi_exit.training.loop import FitSettings, fit
from mdi_exit.training.phases import Evaluation, Phase, Trainee
from mdi_exit.training.recipe import Recipe
from mdi_exit.training.record import EpochRow
from mdi_exit.training.samples import Samples, held_out, input_spec, samples_of
from mdi_exit.training.strategies.distill import DistillPhase
from mdi_exit.training.strategies.frozen import BackbonePhase, HeadsPhase
from mdi_exit.training.strategies.jei import AlternatingPhase, WarmUpPhase, jei_recipe
from mdi_exit.training.strategies.joint import JointPhase, exit_weights

__all__ = ["STRATEGIES", "Study", "run_study"]

STRATEGIES: Final = ("joint", "distill", "frozen", "jei")
_VALIDATION: Final = 5000

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What is compared. ``limit``: training samples (None: all); ``cost_weights``: JEI-DNN's λ, each trained by itself."""

    data: str = "fashion-mnist"
    model: str = "small_resnet18"
    width: float = 0.25
    stem_stride: int = 2
    exits: int = 4
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int = 5
    batch_size: int = 256
    learning_rate: float = 0.12
    head_epochs: int = 12
    warm_up_epochs: int = 6
    alternating_epochs: int = 12
    cost_weights: tuple[float, ...] = (0.03, 0.1, 0.5, 1.5)
    limit: int | None = 40_000
    threads: int = 1

    @property
    def recipe(self) -> Recipe:
        """Of everything that trains the backbone."""
        return Recipe(epochs=self.epochs, batch_size=self.batch_size, learning_rate=self.learning_rate)

    @property
    def key(self) -> str:
        """Tells studies apart, but for their seeds."""
        fields = {**asdict(self), "seeds": None, "threads": None}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:8]


def network_for(study: Study, shape: tuple[int, int, int], classes: int, seed: int) -> MultiExitNetwork:
    """Untrained; exits are spread evenly by cost."""
    if study.model not in BACKBONES:
        raise UsageError("model", f"one of {', '.join(BACKBONES)}", repr(study.model))
    torch.manual_seed(seed)
    backbone = BACKBONES[study.model](
        width=study.width, classes=classes, channels_in=shape[0], stem_stride=study.stem_stride
    )
    named, classifier = layers_of(backbone)
    layers = list(named.values())
    heads: dict[int, nn.Module] = {}
    x_N = torch.zeros(1, *shape)
    chosen = at_equal_cost([layer.eval() for layer in layers], x_N, study.exits)
    with torch.no_grad():
        for number, layer in enumerate(layers):
            x_N = layer(x_N)
            if number in chosen:
                heads[number] = head_for(tuple(x_N.shape[1:]), classes)
    return MultiExitNetwork(layers, {**heads, len(layers) - 1: classifier})


@dataclass(slots=True)
class _Seed:
    """One seed's data and untrained network, and where its parts are kept."""

    study: Study
    seed: int
    folder: Path
    say: Say
    train: Samples
    validation: Samples
    calibration: Samples
    test: Samples
    fresh: MultiExitNetwork
    costs: Costs
    record: dict[str, Any]

    @classmethod
    def made(cls, study: Study, seed: int, folder: Path, data_dir: Path | None, say: Say) -> _Seed:
        parts = splits(study.data, seed=seed, data_dir=data_dir)
        spec = input_spec(parts.train)
        kept, validation = held_out(parts.train, min(_VALIDATION, len(parts.train) // 10), seed)
        if study.limit is not None:
            kept = kept.subset(np.arange(min(study.limit, len(kept))))
        fresh = network_for(study, spec.image_shape, len(parts.train.classes), seed)
        return cls(
            study,
            seed,
            folder,
            say,
            train=samples_of(kept, spec),
            validation=samples_of(validation, spec),
            calibration=samples_of(parts.calibration, spec),
            test=samples_of(parts.test, spec),
            fresh=fresh,
            costs=costs_of(fresh, spec.shape),
            record=msgspec.to_builtins(parts.record),
        )

    @property
    def settings(self) -> FitSettings:
        return FitSettings(seed=self.seed, threads=self.study.threads)

    def fitted(self, name: str, trainee: Trainee, phases: list[Phase]) -> list[EpochRow]:
        """Trained, with a checkpoint of its own, which stays: the backbone's is used twice."""

        def told(row: EpochRow) -> None:
            shares = " ".join(f"{100 * share:.1f}" for share in row.accuracies)
            self.say(
                f"seed {self.seed} {name}: {row.phase} epoch {row.epoch}, {row.seconds:.0f} s, validation {shares} %"
            )

        path = self.folder / f"{name}-{self.seed}.checkpoint.pt"
        return fit(
            trainee, phases, self.train, self.validation, self.settings, checkpoint=path, epoch_done=told,
            purpose={"name": name, "stem_stride": self.study.stem_stride},
        )  # fmt: skip

    def backboned(self, *, gated: bool) -> tuple[Trainee, list[EpochRow]]:
        """The seed's one backbone, trained once."""
        bare = Trainee(copy.deepcopy(self.fresh))
        rows = self.fitted("backbone", bare, [BackbonePhase(bare, self.study.recipe)])
        torch.manual_seed(self.seed)
        return Trainee(bare.network, gated=gated), rows

    def evaluations(self, trainee: Trainee) -> tuple[Evaluation, Evaluation]:
        """On the calibration samples and on the test set."""
        device = next(trainee.parameters()).device
        off = torch.autocast(device.type, enabled=False)
        found = [ImageFeed(trainee, one, device, lambda: off).evaluation() for one in (self.calibration, self.test)]
        return found[0], found[1]

    def curves(self, trainee: Trainee, *, gate: bool = False) -> dict[str, Any]:
        """Threshold curves on calibration and test samples, over the same thresholds."""
        measure: Measure = "gate" if gate else "max-probability"
        trainee.cpu()
        traces = [trace_of(trainee, one, self.costs, measure) for one in self.evaluations(trainee)]
        thresholds_T = thresholds_for(traces[0])
        calibration, test = (_plain(curve_of(trace, thresholds_T)) for trace in traces)
        return {
            "measure": measure,
            "thresholds": [round(float(value), 6) for value in thresholds_T],
            "calibration": calibration,
            "test": test,
            "exit_accuracies": [round(float(value), 4) for value in traces[1].right_NS.mean(0)],
        }


def _plain(curve: Curve) -> dict[str, list[float]]:
    return {
        "macs": [round(float(value), 1) for value in curve.macs_T],
        "accuracies": [round(float(value), 6) for value in curve.accuracies_T],
    }


def _joint(seed: _Seed) -> tuple[dict[str, Any], list[EpochRow]]:
    trainee = Trainee(copy.deepcopy(seed.fresh))
    weights_L = exit_weights("half", seed.study.exits)
    rows = seed.fitted("joint", trainee, [JointPhase(trainee, seed.study.recipe, weights_L)])
    return {"joint": seed.curves(trainee)}, rows


def _distill(seed: _Seed) -> tuple[dict[str, Any], list[EpochRow]]:
    trainee = Trainee(copy.deepcopy(seed.fresh))
    weights_L = exit_weights("half", seed.study.exits)
    rows = seed.fitted("distill", trainee, [DistillPhase(trainee, seed.study.recipe, weights_L)])
    return {"distill": seed.curves(trainee)}, rows


def _frozen(seed: _Seed) -> tuple[dict[str, Any], list[EpochRow]]:
    trainee, rows = seed.backboned(gated=False)
    recipe = Recipe(epochs=seed.study.head_epochs, learning_rate=0.05, schedule="cosine")
    rows = rows + seed.fitted("frozen", trainee, [HeadsPhase(trainee, recipe)])
    return {"frozen": seed.curves(trainee)}, rows


def _jei(seed: _Seed) -> tuple[dict[str, Any], list[EpochRow]]:
    """One warm-up, then turns for each λ from the same start."""
    warm, rows = seed.backboned(gated=True)
    rows = rows + seed.fitted("warm-up", warm, [WarmUpPhase(warm, jei_recipe(seed.study.warm_up_epochs))])
    found = {}
    for cost_weight in seed.study.cost_weights:
        trainee = copy.deepcopy(warm)
        recipe = jei_recipe(seed.study.alternating_epochs)
        phase = AlternatingPhase(trainee, recipe, seed.costs.shares, cost_weight)
        rows = rows + seed.fitted(f"jei-{cost_weight:g}", trainee, [phase])
        found[f"jei gate λ={cost_weight:g}"] = seed.curves(trainee, gate=True)
        found[f"jei plain λ={cost_weight:g}"] = seed.curves(trainee)
    return found, rows


_TRAINED: Final = {"joint": _joint, "distill": _distill, "frozen": _frozen, "jei": _jei}


def run_study(study: Study, folder: Path, *, data_dir: Path | None, say: Say) -> list[dict[str, Any]]:
    """A row for each seed and strategy; those that ``folder`` has already are not trained again."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in study.seeds:
        seed: _Seed | None = None
        for strategy in STRATEGIES:
            path = folder / f"{strategy}-{number}.json"
            if not path.exists():
                seed = seed or _Seed.made(study, number, folder, data_dir, say)
                begin = time.monotonic()
                curves, epochs = _TRAINED[strategy](seed)
                row = {
                    "seed": number,
                    "strategy": strategy,
                    "seconds": round(time.monotonic() - begin, 1),
                    "costs": list(seed.costs.to_exits),
                    "exit_layers": list(seed.costs.exit_layers),
                    "data": seed.record,
                    "trained_on": len(seed.train),
                    "epochs": [one.to_plain() for one in epochs],
                    "curves": curves,
                }
                partial = path.with_suffix(".partial")
                partial.write_text(json.dumps(row))
                partial.replace(path)
            rows.append(json.loads(path.read_text()))
    return rows
