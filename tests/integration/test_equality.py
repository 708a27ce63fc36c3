"""A split run gives what the whole model gives in one process: labels and exits exactly, for all shipped images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from live import System

from mdi_exit.confidence import probabilities
from mdi_exit.engine.onnx import OnnxEngine
from mdi_exit.model.artifact import DEFAULT_MODEL, Artifact
from mdi_exit.model.compose import Composer
from mdi_exit.span import LayerSpan
from source.inputs import open_input, preprocess

pytestmark = pytest.mark.broker

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


@pytest.fixture(scope="module")
def reference() -> Reference:
    artifact = Artifact.open(DEFAULT_MODEL)
    plan, composer, engine = artifact.manifest.plan, Composer(artifact), OnnxEngine(1)
    whole = LayerSpan(0, plan.layer_count)
    samples = list(open_input("shipped", artifact.manifest))
    features = np.stack([preprocess(sample.pixels, artifact.manifest.input) for sample in samples])
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


PARTITIONS = {
    "source and one agent": ("0-3", ["4-8"]),
    "three agents": (None, ["0-1", "2-4", "5-8"]),
    "overlapping": ("0-3", ["2-6", "4-8", "0-8"]),
}


def _run(system: System, own: str | None, spans: list[str], threshold: float, *flags: str) -> dict[str, dict]:
    agents = [system.agent(f"agent-{number}", span) for number, span in enumerate(spans)]
    for agent in agents:
        agent.until_says("connected")
    layers = ["--layers", own] if own else []
    source = system.source(
        *("--rate", "max", "--adapt", "none", "--exit-threshold", str(threshold), "--min-threshold", "0.1"),
        *layers,
        *flags,
    )
    source.until_completed()
    # Where work is shared, each agent must have had some for the run to show anything.
    assert {node for row in source.rows for node in row["path"]} >= {f"agent-{number}" for number in range(len(spans))}
    for agent in agents:
        assert agent.stop() == 0
    return {row["id"]: row for row in source.rows}


@pytest.mark.slow
@pytest.mark.parametrize("partition", PARTITIONS)
def test_labels_and_exits_are_those_of_one_process(system: System, reference: Reference, partition: str) -> None:
    own, spans = PARTITIONS[partition]
    rows = _run(system, own, spans, reference.threshold)
    expected = reference.expected()
    assert len(expected) == 2000
    assert {name: (row["label"], row["exit"]) for name, row in rows.items()} == {
        name: (label, number) for name, (label, number, _) in expected.items()
    }
    for name, row in rows.items():
        assert row["confidence"] == pytest.approx(expected[name][2], abs=1e-4)


@pytest.mark.parametrize(("codec", "agreeing"), [("float16", 0.99), ("int8", 0.95)])
def test_a_lossy_codec_changes_few_labels(system: System, reference: Reference, codec: str, agreeing: float) -> None:
    rows = _run(system, "0-3", ["4-8"], reference.threshold, "--codec", codec, "--limit", "500")
    expected = reference.expected()
    same = sum(row["label"] == expected[name][0] for name, row in rows.items())
    assert len(rows) == 500
    assert same >= agreeing * len(rows)
