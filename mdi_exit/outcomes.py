"""What an artifact says of each sample of a data set at every exit, by ONNX Runtime: logits, gates, truth, costs.

Confidences, calibration, thresholds and tables are made of it without running the model again. Features pass the codecs of
the cuts on the way, as they would between nodes, so that what is promised holds for the model as it is deployed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from mdi_exit.confidence import State, judge
from mdi_exit.data.classes import class_map
from mdi_exit.data.sets import Dataset
from mdi_exit.engine.base import SegmentOutput
from mdi_exit.engine.onnx import OnnxEngine
from mdi_exit.errors import UsageError
from mdi_exit.modality import modality_of
from mdi_exit.model.artifact import Artifact
from mdi_exit.model.compose import Composer
from mdi_exit.model.manifest import Manifest, Measure
from mdi_exit.padding import stacked, unpadded
from mdi_exit.recorded import SHARED_TYPES, Recorded
from mdi_exit.segments import SegmentKey
from mdi_exit.tensors import decode_tensor, encode_tensor, without_compression
from mdi_exit.trace import Trace

__all__ = ["Outcomes", "measures_of", "outcomes", "truths_of"]

_LOSSLESS: Final = "float32"

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes(Recorded):
    """S exits, N samples, K classes, L layers.

    ``gates_SN``: what an exit's gate or branch gives, NaN where it has none. ``temperatures_S``: of the artifact. ``about``
    has also ``gates``, where they are branches.
    """

    KIND: ClassVar = "outcomes"
    TYPES: ClassVar = {
        "logits_SNK": np.float32,
        "gates_SN": np.float32,
        "temperatures_S": np.float64,
        **SHARED_TYPES,
    }

    logits_SNK: Array
    gates_SN: Array
    temperatures_S: NDArray[np.float64]

    def trace(self, measure: Measure, temperatures: Sequence[float] | None = None) -> Trace:
        """Confidences by ``measure``. ``temperatures``: one for each exit (None: the artifact's).

        Raises ``UsageError`` for gates that the artifact does not have.
        """
        if measure not in measures_of(self):
            raise UsageError(f"measure {measure}", "what it needs at each early exit of the artifact", "none for some")
        divisors = self.temperatures_S.tolist() if temperatures is None else list(temperatures)
        states: list[State] = [()] * len(self)
        scores, labels = [], []
        for number, (logits_NK, gate_N, divisor) in enumerate(
            zip(self.logits_SNK, self.gates_SN, divisors, strict=True)
        ):
            last = number == self.exits - 1  # its score decides nothing, and is the plain one, as on a node
            judged = judge(
                "max-probability" if last else measure,
                logits_NK,
                states=states,
                exits=self.exits,
                temperature=divisor,
                gate_N1=gate_N[:, None],
            )
            states = judged.states
            scores.append(judged.scores)
            labels.append(judged.labels)
        return Trace(
            measure=measure,
            scores_NS=np.array(scores, np.float64).T.copy(),
            labels_NS=np.array(labels, np.int32).T.copy(),
            about=self.about,
            **{name: getattr(self, name) for name in SHARED_TYPES},
        )


def measures_of(made: Outcomes) -> tuple[Measure, ...]:
    """The measures that the artifact has what they need for."""
    plain: tuple[Measure, ...] = ("max-probability", "margin", "entropy", "patience")
    if np.isnan(made.gates_SN[:-1]).any():
        return plain
    return (*plain, "frame-entropy" if made.about.get("gates") == "frame-entropy" else "gate")


def truths_of(dataset: Dataset, manifest: Manifest) -> NDArray[np.int32]:
    """The model's class of each sample. Raises ``UsageError`` for a class that the model does not know."""
    known = class_map(dataset.classes, manifest.labels)
    missing = [dataset.classes[label] for label in np.unique(dataset.labels_N).tolist() if label not in known]
    if missing:
        raise UsageError(f"data {dataset.name}", "classes that the model knows by name", ", ".join(missing[:3]))
    return np.array([known[label] for label in dataset.labels_N.tolist()], np.int32)


def outcomes(
    artifact: Artifact,
    dataset: Dataset,
    *,
    codec: str = _LOSSLESS,
    batch: int = 256,
    threads: int = 1,
    about: dict[str, Any] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Outcomes:
    """Run every sample through every exit.

    ``codec``: of the cuts that have none of their own. Every boundary of two layers counts as a cut, since any may be one
    when the artifact is deployed: the most that codecs can do. ``progress`` is told how many samples are done. Raises
    ``UsageError``, ``EngineError``.
    """
    manifest = artifact.manifest
    if not len(dataset):
        raise UsageError(f"data {dataset.name}", "at least one sample", "none")
    truth_N = truths_of(dataset, manifest)
    codecs = {
        layer: chosen
        for layer in range(1, len(manifest.layers))
        if (chosen := without_compression(manifest.layers[layer].codec or codec)) != _LOSSLESS
    }
    modality = modality_of(artifact)
    engine, keys = _loaded(artifact, set(codecs), threads)
    logits: list[list[Array]] = [[] for _ in manifest.exits]
    gates: list[list[Array]] = [[] for _ in manifest.exits]
    for begin in range(0, len(dataset), batch):
        x = modality.batch(dataset.items[begin : begin + batch])
        for number, output in enumerate(_passed(engine, keys, codecs, x, manifest)):
            logits[number].append(output.logits_NK)  # type: ignore[arg-type]
            gate_N1 = output.gate_N1 if output.gate_N1 is not None else np.full((len(x), 1), np.nan, np.float32)
            gates[number].append(gate_N1[:, 0])
        progress(min(begin + batch, len(dataset)))
    return Outcomes(
        logits_SNK=np.stack([np.concatenate(rows) for rows in logits]),
        gates_SN=np.stack([np.concatenate(rows) for rows in gates]),
        truth_N=truth_N,
        temperatures_S=np.array([spec.temperature for spec in manifest.exits], np.float64),
        layer_macs_L=np.array([_layer_macs(manifest, layer) for layer in range(len(manifest.layers))], np.int64),
        layer_bytes_L=np.array(manifest.plan.feature_bytes, np.int64),
        head_macs_S=np.array([spec.macs for spec in manifest.exits], np.int64),
        exit_layers_S=np.array([spec.layer for spec in manifest.exits], np.int64),
        about={"model": manifest.name, "digest": manifest.digest, "codec": codec, "data": dataset.name}
        | ({"gates": "frame-entropy"} if any(spec.branch is not None for spec in manifest.exits) else {})
        | (about or {}),
    )


def _layer_macs(manifest: Manifest, layer: int) -> int:
    spec = manifest.layers[layer]
    return spec.macs + (spec.bottleneck.macs if spec.bottleneck else 0)


def _loaded(artifact: Artifact, cuts: set[int], threads: int) -> tuple[OnnxEngine, list[SegmentKey]]:
    """An engine with the segments from exit to exit, cut also before the layers of ``cuts``."""
    ends = {spec.layer + 1 for spec in artifact.manifest.exits}
    stops = sorted(ends | cuts)
    keys = [SegmentKey(entry, stop, head=stop in ends) for entry, stop in zip([0, *stops[:-1]], stops, strict=True)]
    engine, composer = OnnxEngine(threads), Composer(artifact)
    for key in keys:
        engine.load(key, composer.segment(key))
    return engine, keys


def _passed(
    engine: OnnxEngine, keys: Sequence[SegmentKey], codecs: dict[int, str], x: Array, manifest: Manifest
) -> list[SegmentOutput]:
    """The outputs of the segments with a head, for one batch."""
    found = []
    for key in keys:
        output = engine.run(key, x)
        if key.head:
            found.append(output)
        if output.features is not None:
            x = output.features
            if codec := codecs.get(key.stop):
                rows = [unpadded(row) for row in x] if manifest.length(key.stop) is not None else [*x]
                x = stacked([decode_tensor(codec, row.shape, encode_tensor(codec, row)) for row in rows])
    return found
