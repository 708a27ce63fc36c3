"""From settings to what is trained: the network, its phases, and why it cannot be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mdi_exit.engine.torch import network_of
from mdi_exit.errors import UsageError
from mdi_exit.model.artifact import Artifact
from mdi_exit.model.build import Built, built, built_again
from mdi_exit.model.manifest import InputSpec
from mdi_exit.training.config import TrainSettings
from mdi_exit.training.costs import Costs, costs_of
from mdi_exit.training.phases import Phase, Trainee
from mdi_exit.training.recipe import Recipe
from mdi_exit.training.strategies.distill import DistillPhase
from mdi_exit.training.strategies.frozen import BackbonePhase, HeadsPhase, LastHeadPhase
from mdi_exit.training.strategies.jei import (
    WARM_UP_EPOCHS,
    AlternatingPhase,
    GateTargets,
    WarmUpPhase,
    jei_recipe,
    linear_warm_up,
)
from mdi_exit.training.strategies.joint import JointPhase, exit_weights

__all__ = ["Plan", "planned"]

_DEFAULT_EXITS = 4


@dataclass(frozen=True, slots=True)
class Plan:
    """``record``: of the strategy, for the artifact and for telling runs apart."""

    model: Built
    trainee: Trainee
    phases: tuple[Phase, ...]
    costs: Costs
    record: dict[str, Any]


def planned(settings: TrainSettings, spec: InputSpec, classes: int, length: int | None = None) -> Plan:
    """``length``: at which costs are stated, where inputs may vary in it.

    Raises ``UsageError`` for settings that do not fit each other or the model.
    """
    if classes < 2:
        raise UsageError("data", "at least 2 classes", classes)
    start = None if settings.start is None else Artifact.open(settings.start)
    name, model = _model(settings, spec, classes, start)
    if len(model.network.exit_layers) < 2:
        raise UsageError("--exits", "at least 2 exits, the last layer's included", len(model.network.exit_layers))
    if start is not None:
        _begin_with(model, start)
    costs = costs_of(model.network, spec.shape if length is None else (length, *spec.shape[1:]))
    trainee = Trainee(model.network, gated=settings.strategy == "jei", pretrained=model.pretrained)
    phases, record = _phases(settings, trainee, costs, spec.kind == "text")
    record |= {"model": name, "start": str(settings.start or ""), "weights": str(settings.weights or "")}
    return Plan(model, trainee, phases, costs, record)


def _model(settings: TrainSettings, spec: InputSpec, classes: int, start: Artifact | None) -> tuple[str, Built]:
    """Its name, and the network: that of ``start`` where no other is named."""
    exits = settings.exits
    if start is not None and settings.model is None and settings.width is None and settings.weights is None:
        manifest = start.manifest
        if exits is None and len(manifest.exits) < 2:
            exits = min(_DEFAULT_EXITS, len(manifest.layers))
        if manifest.input.shape != spec.shape:
            raise UsageError(
                "--from", f"an artifact for input {spec.shape}, or another --input-shape", manifest.input.shape
            )
        made = built_again(start, exits=exits, seed=settings.seed)
        if made.classes != classes:
            raise UsageError("--from", f"an artifact of {classes} classes, as the data has", made.classes)
        return str(manifest.training.get("model", manifest.name)), made
    name = settings.model or "mobilenetv2"
    if exits is None and name != "mobilenetv2" and spec.kind == "image":
        exits = _DEFAULT_EXITS
    return name, built(
        name, input_shape=spec.shape, classes=classes, exits=exits, weights=settings.weights, seed=settings.seed,
        width=settings.width,
    )  # fmt: skip


def _phases(
    settings: TrainSettings, trainee: Trainee, costs: Costs, texts: bool
) -> tuple[tuple[Phase, ...], dict[str, Any]]:
    recipe = Recipe(epochs=settings.epochs, batch_size=settings.batch_size, learning_rate=settings.learning_rate)
    weights_L = exit_weights(settings.exit_weights, len(costs.exit_layers))
    record: dict[str, Any] = {"strategy": settings.strategy}
    match settings.strategy:
        case "joint":
            return (JointPhase(trainee, recipe, weights_L),), {**record, "exit_weights": list(weights_L)}
        case "distill":
            teaching = {"temperature": settings.temperature, "share": settings.teaching_share}
            phase = DistillPhase(trainee, recipe, weights_L, **teaching)
            return (phase,), {**record, "exit_weights": list(weights_L), **teaching}
        case "frozen":
            heads = Recipe(**{**asdict(recipe), "schedule": "cosine"})
            return (*_backbone(settings, trainee), HeadsPhase(trainee, heads)), record
        case _:
            warm_up, turns = _warm_up(settings, trainee, texts), _turns(settings, trainee, costs, texts)
            record |= {"cost_weight": turns.cost_weight, "gate_targets": turns.targets}
            return (*_backbone(settings, trainee), warm_up, turns), record


def _warm_up(settings: TrainSettings, trainee: Trainee, texts: bool) -> WarmUpPhase:
    if texts:
        return linear_warm_up(trainee, settings.warm_up_epochs)
    return WarmUpPhase(trainee, jei_recipe(settings.warm_up_epochs or WARM_UP_EPOCHS))


def _turns(settings: TrainSettings, trainee: Trainee, costs: Costs, texts: bool) -> AlternatingPhase:
    targets: GateTargets = "once" if texts else "onward"
    if settings.gate_targets is not None:
        targets = settings.gate_targets  # type: ignore[assignment] # one of the choices
    return AlternatingPhase(trainee, jei_recipe(settings.epochs), costs.shares, settings.cost_weight, targets)


def _backbone(settings: TrainSettings, trainee: Trainee) -> Sequence[Phase]:
    """None where a trained one is given."""
    if settings.start is not None or settings.weights is not None:
        return ()
    if trainee.pretrained:
        recipe = Recipe(epochs=settings.epochs, batch_size=settings.batch_size, learning_rate=settings.learning_rate)
        return (LastHeadPhase(trainee, recipe),)
    if settings.backbone_epochs == 0:
        raise UsageError("--backbone-epochs", "at least 1, or a trained backbone by --from or --weights", 0)
    recipe = Recipe(
        epochs=settings.backbone_epochs, batch_size=settings.batch_size, learning_rate=settings.learning_rate
    )
    return (BackbonePhase(trainee, recipe),)


def _begin_with(model: Built, start: Artifact) -> None:
    """The layers and the last exit of an artifact, and the heads that both have. Raises ``UsageError``."""
    given = network_of(start)
    wanted = model.network
    heads = {name: head for name, head in given.exits.items() if name in wanted.exits}
    last = str(wanted.exit_layers[-1])
    try:
        wanted.layers.load_state_dict(given.layers.state_dict())
        wanted.exits[last].load_state_dict(given.exits[str(given.exit_layers[-1])].state_dict())
        for name, head in heads.items():
            wanted.exits[name].load_state_dict(head.state_dict())
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise UsageError("--from", "an artifact of the same model, width and classes", reason) from None
