"""What a model costs: multiply-accumulates, bytes that cross each cut, bytes of weights.

The costs may be an artifact's own, or a table's: so the costs of a full-width network can stand beside the recorded
outcomes of a narrow one that was trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mdi_exit import values
from mdi_exit.engine.profile import camera_scale
from mdi_exit.errors import UsageError
from mdi_exit.model.artifact import Artifact
from mdi_exit.model.manifest import Manifest
from mdi_exit.segments import ModelPlan
from mdi_exit.tables import open_table
from mdi_exit.tensors import CODECS, encoded_size, without_compression

__all__ = ["ModelCosts", "costs_of_artifact", "costs_of_manifest", "costs_of_table"]

_BITS_PER_VALUE = {"float32": 32, "float16": 16, "int8": 8, "int4": 4}


@dataclass(frozen=True, slots=True)
class ModelCosts:
    """``plan.feature_bytes``: as sent, in the scenario's codec; ``[0]`` is the input.

    ``layer_macs``, ``layer_bytes`` (weights) by layer; ``exit_macs``, ``exit_bytes`` by exit number.
    """

    name: str
    plan: ModelPlan
    layer_macs: tuple[float, ...]
    exit_macs: tuple[float, ...]
    layer_bytes: tuple[int, ...]
    exit_bytes: tuple[int, ...]

    def __post_init__(self) -> None:
        by_layer, by_exit = (self.layer_macs, self.layer_bytes), (self.exit_macs, self.exit_bytes)
        if {len(row) for row in by_layer} != {self.plan.layer_count}:
            raise ValueError(f"expected costs of {self.plan.layer_count} layers, got {list(map(len, by_layer))}")
        if {len(row) for row in by_exit} != {len(self.plan.exit_layers)}:
            raise ValueError(f"expected costs of {len(self.plan.exit_layers)} exits, got {list(map(len, by_exit))}")


def costs_of_manifest(manifest: Manifest, codec: str = "float32") -> ModelCosts:
    """As an emulated device sees them: a camera-size task, see ``mdi_exit.engine.profile``."""
    plan = manifest.plan
    scale = camera_scale(manifest)
    layers = range(plan.layer_count)
    codecs = [manifest.layers[layer].codec or codec for layer in layers]
    return ModelCosts(
        name=manifest.name,
        plan=ModelPlan(
            digest=plan.digest,
            layer_count=plan.layer_count,
            exit_layers=plan.exit_layers,
            feature_bytes=tuple(encoded_size(codecs[layer], manifest.stated_shape(layer)) for layer in layers),
            exit_thresholds=plan.exit_thresholds,
            calibrated_at=plan.calibrated_at,
            inclusive=plan.inclusive,
            layer_macs=plan.layer_macs,
            layer_bytes=tuple(size // 2 for size in plan.layer_bytes),  # weights, once
            stateful=plan.stateful,
            head_macs=plan.head_macs,
        ),
        layer_macs=tuple(scale * layer.macs for layer in manifest.layers),
        exit_macs=tuple(scale * spec.macs for spec in manifest.exits),
        layer_bytes=tuple(layer.graph.bytes for layer in manifest.layers),
        exit_bytes=tuple(spec.graph.bytes for spec in manifest.exits),
    )


def costs_of_artifact(name_or_path: str, codec: str = "float32") -> ModelCosts:
    """Raises ``ArtifactError``."""
    return costs_of_manifest(Artifact.open(name_or_path).manifest, codec)


def costs_of_table(path: Path, codec: str = "float32") -> ModelCosts:
    """A TOML file with ``name``, ``layer_macs``, ``exit_macs``, ``layer_bytes``, ``exit_bytes``, ``exit_layers``,
    ``feature_bytes`` (float32; of what enters each layer) and ``note``. Raises ``UsageError``.
    """
    table = open_table(path, "costs")
    table.get("note", values.text)
    count = values.integer(0)
    layer_macs = table.all("layer_macs", values.positive_float, ())
    layer_bytes = table.all("layer_bytes", count, ())
    exit_macs = table.all("exit_macs", count, ())
    exit_bytes = table.all("exit_bytes", count, ())
    exit_layers = table.all("exit_layers", count, ())
    feature_bytes = table.all("feature_bytes", values.positive_int, ())
    name = table.needed("name", values.text)
    table.done()
    for key, row in (("layer_bytes", layer_bytes), ("feature_bytes", feature_bytes)):
        if not layer_macs or len(row) != len(layer_macs):
            raise table.wrong(key, f"as many as layer_macs, {len(layer_macs)}, and at least one", len(row))
    for key, row in (("exit_macs", exit_macs), ("exit_bytes", exit_bytes)):
        if len(row) != len(exit_layers):
            raise table.wrong(key, f"as many as exit_layers, {len(exit_layers)}", len(row))
    if codec not in CODECS:
        raise UsageError("codec", "one of " + ", ".join(CODECS), codec)
    try:
        plan = ModelPlan(
            digest=name,
            layer_count=len(layer_macs),
            exit_layers=exit_layers,
            feature_bytes=tuple(size * _BITS_PER_VALUE[without_compression(codec)] // 32 for size in feature_bytes),
            layer_macs=_with_heads(tuple(map(int, layer_macs)), exit_layers, exit_macs),
            layer_bytes=_with_heads(layer_bytes, exit_layers, exit_bytes),
        )
    except ValueError as error:
        raise table.wrong("exit_layers", f"rising layers that end at {len(layer_macs) - 1}", error) from None
    return ModelCosts(name, plan, layer_macs, tuple(map(float, exit_macs)), layer_bytes, exit_bytes)


def _with_heads(layers: tuple[int, ...], exit_layers: tuple[int, ...], heads: tuple[int, ...]) -> tuple[int, ...]:
    by_layer = dict(zip(exit_layers, heads, strict=True))
    return tuple(cost + by_layer.get(layer, 0) for layer, cost in enumerate(layers))
