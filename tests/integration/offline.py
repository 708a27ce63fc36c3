"""What one process without a network says of the shipped images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mdi_exit.confidence import probabilities
from mdi_exit.engine.onnx import OnnxEngine
from mdi_exit.modality import modality_of
from mdi_exit.model.artifact import DEFAULT_MODEL, Artifact
from mdi_exit.model.compose import Composer
from mdi_exit.span import LayerSpan
from source.inputs import open_input

_CLEAR_OF_SCORES = 1e-4


@dataclass(frozen=True)
class Reference:
    """``labels_NK`` and ``scores_NK`` of every exit, for every shipped image, from one process."""

    ids: list[str]
    labels_NK: np.ndarray
    scores_NK: np.ndarray

    @property
    def threshold(self) -> float:
        """One from 0.8 up that no score comes near."""
        for threshold in np.arange(0.8, 0.9, 0.0007):
            if np.abs(self.scores_NK - threshold).min() > _CLEAR_OF_SCORES:
                return round(float(threshold), 6)
        raise AssertionError("every threshold tried has a score near it")

    def expected(self) -> dict[str, tuple[int, int, float]]:
        """Label, exit and score by the image's id."""
        early_NK = self.scores_NK > self.threshold
        early_NK[:, -1] = True
        exits_N = early_NK.argmax(axis=1).tolist()
        return {
            name: (int(self.labels_NK[row, number]), number, float(self.scores_NK[row, number]))
            for row, (name, number) in enumerate(zip(self.ids, exits_N, strict=True))
        }


def reference() -> Reference:
    """All exits of all images; takes some seconds."""
    artifact = Artifact.open(DEFAULT_MODEL)
    plan, composer, engine = artifact.manifest.plan, Composer(artifact), OnnxEngine(1)
    whole = LayerSpan(0, plan.layer_count)
    samples = list(open_input("shipped", artifact.manifest))
    modality = modality_of(artifact)
    features = np.stack([modality.prepared(sample.raw) for sample in samples])
    labels, scores = [], []
    entry = 0
    while entry < plan.layer_count:
        key = plan.segment(entry, whole, early_exits=True)
        engine.load(key, composer.segment(key))
        outputs = [engine.run(key, features[at : at + 1]) for at in range(len(features))]
        p_NK = probabilities(np.concatenate([output.logits_NK for output in outputs]))
        labels.append(p_NK.argmax(axis=1))
        scores.append(p_NK.max(axis=1))
        entry = key.stop
        if entry < plan.layer_count:
            features = np.concatenate([output.features for output in outputs])
    return Reference([sample.id for sample in samples], np.array(labels).T, np.array(scores).T)
