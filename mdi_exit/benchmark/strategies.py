"""``mdi-exit benchmark strategies``: joint, frozen, distilled and JEI-DNN exits at equal cost, over several seeds.

One architecture, so one scale of cost. For each seed: the network and its exits are trained jointly, and distilled; a
backbone is trained once and given heads twice, frozen ones and JEI-DNN's with its gates (for several cost weights λ).
Every threshold, and every λ, is chosen on the calibration samples, which no training saw, and scored on the test set.
Each finished pair of seed and strategy is kept, so that a run that was cut short goes on.

On texts (``--model bert:PLACE``) the encoder stays as it came, so that only frozen and JEI-DNN's exits are compared, which
share a last one; gates learn twice from the same warm-up, with targets that are 1 once and with the paper's. What the
encoder makes of the texts is computed once a seed.
"""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import torch
from torch import nn

from mdi_exit.data import splits
from mdi_exit.data.splits import Splits
from mdi_exit.errors import UsageError
from mdi_exit.model.backbones import BACKBONES, layers_of
from mdi_exit.model.build import TEXT_MODELS, at_equal_cost, built
from mdi_exit.model.heads import head_for
from mdi_exit.model.manifest import Measure
from mdi_exit.model.network import MultiExitNetwork
from mdi_exit.training.checkpoint import write_checkpoint, write_text
from mdi_exit.training.config import TrainSettings
from mdi_exit.training.costs import Costs, costs_of
from mdi_exit.training.curve import Curve, curve_of, thresholds_for, trace_of
from mdi_exit.training.feed import ImageFeed, TapFeed, feed_of
from mdi_exit.training.loop import FitSettings, fit
from mdi_exit.training.phases import Evaluation, Phase, Trainee
from mdi_exit.training.recipe import Recipe
from mdi_exit.training.record import EpochRow
from mdi_exit.training.samples import AnySamples, held_out, input_spec, prepared_samples, samples_of
from mdi_exit.training.strategies.distill import DistillPhase
from mdi_exit.training.strategies.frozen import BackbonePhase, HeadsPhase, LastHeadPhase
from mdi_exit.training.strategies.jei import (
    LINEAR_EPOCHS,
    AlternatingPhase,
    GateTargets,
    WarmUpPhase,
    jei_recipe,
    linear_warm_up,
)
from mdi_exit.training.strategies.joint import JointPhase, exit_weights
from mdi_exit.training.texts import text_plan

__all__ = ["STRATEGIES", "Study", "run_study", "text_study"]

STRATEGIES: Final = ("joint", "distill", "frozen", "jei")
TEXT_STRATEGIES: Final = ("frozen", "jei")
_VALIDATION: Final = 5000

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What is compared. ``limit``: training samples (None: all); ``cost_weights``: JEI-DNN's λ, each trained by itself.

    ``max_length``: of texts, in tokens.
    """

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
    head_rate: float = 0.05
    warm_up_epochs: int = 6
    alternating_epochs: int = 12
    cost_weights: tuple[float, ...] = (0.03, 0.1, 0.5, 1.5)
    limit: int | None = 40_000
    threads: int = 1
    max_length: int = 128

    @property
    def texts(self) -> bool:
        return self.model.startswith(TEXT_MODELS)

    @property
    def strategies(self) -> tuple[str, ...]:
        return TEXT_STRATEGIES if self.texts else STRATEGIES

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


def text_study(model: str, data: str, *, max_length: int, seeds: tuple[int, ...]) -> Study:
    """Of heads on an encoder that came with its weights: they cost little, so that all of them learn to the end.

    ``epochs`` and what follows are of the last head, ``head_epochs`` of the early ones. Raises ``UsageError``.
    """
    if not model.startswith(TEXT_MODELS):
        raise UsageError("--model", f"{TEXT_MODELS}PLACE", repr(model))
    return Study(
        data=data, model=model, max_length=max_length, seeds=seeds, epochs=40, batch_size=128, learning_rate=0.08,
        head_epochs=60, head_rate=0.3, warm_up_epochs=LINEAR_EPOCHS, alternating_epochs=25,
        cost_weights=(0.03, 0.1, 0.3, 1.0), limit=None,
    )  # fmt: skip


@dataclass(slots=True)
class _Seed:
    """One seed's data and untrained network, and where its parts are kept. ``taps``: of texts, by part."""

    study: Study
    seed: int
    folder: Path
    say: Say
    train: AnySamples
    validation: AnySamples
    calibration: AnySamples
    test: AnySamples
    fresh: MultiExitNetwork
    costs: Costs
    record: dict[str, Any]
    taps: dict[str, TapFeed] = field(default_factory=dict)

    @classmethod
    def made(cls, study: Study, seed: int, folder: Path, data_dir: Path | None, say: Say) -> _Seed:
        parts = splits(study.data, seed=seed, data_dir=data_dir)
        if study.texts:
            return cls._of_texts(study, seed, folder, parts, say)
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

    @classmethod
    def _of_texts(cls, study: Study, seed: int, folder: Path, parts: Splits, say: Say) -> _Seed:
        texts = text_plan(
            TrainSettings(data=study.data, model=study.model, max_length=study.max_length, out=folder), parts
        )
        kept, validation = held_out(parts.train, min(_VALIDATION, len(parts.train) // 10), seed)
        wanted = {"train": kept, "validation": validation, "calibration": parts.calibration, "test": parts.test}
        samples = {name: prepared_samples(part, texts.modality, texts.spec) for name, part in wanted.items()}
        classes = len(parts.train.classes)
        fresh = built(study.model, input_shape=texts.spec.shape, classes=classes, seed=seed).network
        costs, record = costs_of(fresh, (texts.length,)), msgspec.to_builtins(parts.record)
        torch.set_num_threads(study.threads)
        taps = _taps(fresh, samples, folder / f"taps-{seed}.pt", say)
        bare = MultiExitNetwork(
            [nn.Identity() for _ in fresh.layers], {int(layer): head for layer, head in fresh.exits.items()}
        )  # the encoder has done its part: checkpoints need not hold it
        return cls(study, seed, folder, say, **samples, fresh=bare, costs=costs, record=record, taps=taps)

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
            taps=(self.taps["train"], self.taps["validation"]) if self.taps else None,
        )  # fmt: skip

    def backboned(self, *, gated: bool) -> tuple[Trainee, list[EpochRow]]:
        """The seed's one backbone, trained once; of an encoder, its last head."""
        texts = self.study.texts
        bare = Trainee(copy.deepcopy(self.fresh), pretrained=texts)
        phase = (LastHeadPhase if texts else BackbonePhase)(bare, self.study.recipe)
        rows = self.fitted("backbone", bare, [phase])
        torch.manual_seed(self.seed)
        return Trainee(bare.network, gated=gated, pretrained=texts), rows

    def evaluations(self, trainee: Trainee) -> tuple[Evaluation, Evaluation]:
        """On the calibration samples and on the test set."""
        if self.taps:
            made = [replace(self.taps[name], trainee=trainee).evaluation() for name in ("calibration", "test")]
            return made[0], made[1]
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


def _taps(network: MultiExitNetwork, samples: Mapping[str, AnySamples], path: Path, say: Say) -> dict[str, TapFeed]:
    """Of each part, made once and kept in ``path``: the encoder takes longer than everything that comes after."""
    trainee, device, off = Trainee(network, pretrained=True), torch.device("cpu"), torch.autocast("cpu", enabled=False)
    kept: dict[str, tuple[Any, ...]] = torch.load(path, weights_only=True) if path.exists() else {}
    feeds = {}
    for name, part in samples.items():
        if name not in kept:
            feed = feed_of(trainee, part, device, lambda: off, frozen=True, augmentation="none")
            if not isinstance(feed, TapFeed):
                raise UsageError("data", "texts whose features fit in memory", f"{len(part):,} texts")
            say(f"{name}: features of {len(part):,} texts")
            kept[name] = (feed.features, feed.last_NK, feed.last)
            write_checkpoint(path, kept)
        features, last_NK, last = kept[name]
        feeds[name] = TapFeed(trainee, tuple(features), last_NK, part.labels_N, device, lambda: off, last)
    return feeds


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
    recipe = Recipe(epochs=seed.study.head_epochs, learning_rate=seed.study.head_rate, schedule="cosine")
    rows = rows + seed.fitted("frozen", trainee, [HeadsPhase(trainee, recipe)])
    return {"frozen": seed.curves(trainee)}, rows


def _jei(seed: _Seed) -> tuple[dict[str, Any], list[EpochRow]]:
    """One warm-up, then turns for each λ, and for each kind of targets, from the same start."""
    study = seed.study
    warm, rows = seed.backboned(gated=True)
    phase = WarmUpPhase(warm, jei_recipe(study.warm_up_epochs))
    if study.texts:
        phase = linear_warm_up(warm, study.warm_up_epochs)
    rows = rows + seed.fitted("warm-up", warm, [phase])
    kinds: dict[str, GateTargets] = {"jei": "once", "onward": "onward"} if study.texts else {"jei": "onward"}
    found = {}
    for cost_weight in study.cost_weights:
        for name, targets in kinds.items():
            trainee = copy.deepcopy(warm)
            turns = AlternatingPhase(
                trainee, jei_recipe(study.alternating_epochs), seed.costs.shares, cost_weight, targets
            )
            rows = rows + seed.fitted(f"{name}-{cost_weight:g}", trainee, [turns])
            found[f"{name} gate λ={cost_weight:g}"] = seed.curves(trainee, gate=True)
            found[f"{name} plain λ={cost_weight:g}"] = seed.curves(trainee)
    return found, rows


_TRAINED: Final = {"joint": _joint, "distill": _distill, "frozen": _frozen, "jei": _jei}


def run_study(study: Study, folder: Path, *, data_dir: Path | None, say: Say) -> list[dict[str, Any]]:
    """A row for each seed and strategy; those that ``folder`` has already are not trained again."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in study.seeds:
        seed: _Seed | None = None
        for strategy in study.strategies:
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
                write_text("row", path, json.dumps(row))
            rows.append(json.loads(path.read_text()))
    return rows
