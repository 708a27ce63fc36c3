"""What every measure of confidence must keep to, on one model: offline and on a node it says the same."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from gated import gated_artifact

from mdi_exit.calibration.risk import controlled
from mdi_exit.confidence import MEASURES
from mdi_exit.data import preprocess, shipped
from mdi_exit.engine.onnx import OnnxEngine
from mdi_exit.events import RunSegment, SegmentDone, Task
from mdi_exit.executor import Executor
from mdi_exit.model.artifact import Artifact, rewritten
from mdi_exit.model.compose import Composer
from mdi_exit.model.manifest import Calibration, Measure
from mdi_exit.outcomes import Outcomes, measures_of, outcomes
from mdi_exit.policy.exiting import should_exit
from mdi_exit.segments import SegmentKey

COUNT = 40
OF_GATES = tuple(measure for measure in MEASURES if measure != "frame-entropy")  # that one is of branches: test_daisy


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return gated_artifact(tmp_path_factory.mktemp("gated"))


@pytest.fixture(scope="module")
def made(artifact: Artifact) -> Outcomes:
    return outcomes(artifact, shipped().subset(np.arange(600)))


def with_measure(artifact: Artifact, measure: Measure, folder: Path, thresholds: tuple[float, ...]) -> Artifact:
    """Each early exit's own threshold in force when the knob stands at 0.5."""
    exits = [
        msgspec.structs.replace(spec, threshold=threshold)
        for spec, threshold in zip(artifact.manifest.exits, (*thresholds, None), strict=True)
    ]
    calibration = Calibration(measure=measure, threshold=0.5)
    manifest = msgspec.structs.replace(artifact.manifest, exits=tuple(exits), calibration=calibration)
    return rewritten(artifact, manifest, folder)


class Walker:
    """Takes one item from exit to exit on the executor that a node has."""

    def __init__(self, artifact: Artifact) -> None:
        self.executor = Executor(OnnxEngine())
        self.plan = artifact.manifest.plan
        stops = [layer + 1 for layer in self.plan.exit_layers]
        self.keys = [SegmentKey(entry, stop, head=True) for entry, stop in zip([0, *stops[:-1]], stops, strict=True)]
        composer = Composer(artifact)
        graphs = {key: composer.segment(key) for key in self.keys}
        asyncio.run(self.executor.load(artifact.manifest, graphs))

    def exit_of(self, x: np.ndarray, knob: float) -> tuple[int, int, float]:
        """Exit, label and score."""
        task = Task(1, 0, 0, 0, x, x.nbytes)
        for number, key in enumerate(self.keys):
            done = self.executor.run_here(RunSegment(1, key, (task,)))
            assert isinstance(done, SegmentDone)
            (outcome,) = done.outcomes
            last = number == len(self.keys) - 1
            threshold = self.plan.threshold_at(number, knob)
            if should_exit(outcome.score, threshold, last=last, inclusive=self.plan.inclusive):
                assert outcome.label is not None
                return number, outcome.label, outcome.score
            task = msgspec.structs.replace(task, payload=outcome.payload, exit_state=outcome.exit_state)
        raise AssertionError("expected an exit at the end")

    def close(self) -> None:
        self.executor.close()


@pytest.fixture(params=OF_GATES)
def measure(request: pytest.FixtureRequest) -> Measure:
    return request.param


@pytest.fixture
def walker(
    artifact: Artifact, made: Outcomes, measure: Measure, tmp_path: Path
) -> Iterator[tuple[Walker, list[float]]]:
    scores_NS = made.trace(measure).scores_NS
    medians = tuple(round(float(np.median(scores_NS[:, e])), 3) for e in range(made.exits - 1))
    thresholds = (0.5,) * len(medians) if measure == "patience" else medians
    walker = Walker(with_measure(artifact, measure, tmp_path, thresholds))
    yield walker, list(thresholds)
    walker.close()


def test_an_item_leaves_a_node_where_its_trace_says(
    walker: tuple[Walker, list[float]], made: Outcomes, measure: Measure, artifact: Artifact
) -> None:
    on_node, thresholds = walker
    trace = made.trace(measure).subset(np.arange(COUNT))
    exit_N = trace.exits_at(thresholds)
    assert len(set(exit_N.tolist())) > 1  # they do not all leave at one exit
    for index, image in enumerate(shipped().images_NHWC[:COUNT]):
        number, label, score = on_node.exit_of(preprocess(image, artifact.manifest.input), 0.5)
        near = [abs(trace.scores_NS[index, e] - t) < 1e-4 for e, t in enumerate(thresholds)]
        if any(near) and measure != "patience":
            continue  # a batch and a single sample may differ in the last digits
        assert (number, label) == (exit_N[index], trace.labels_NS[index, number])
        assert score == pytest.approx(trace.scores_NS[index, number], abs=1e-4)


def test_scores_are_in_range_and_a_stricter_threshold_never_leaves_earlier(made: Outcomes, measure: Measure) -> None:
    trace = made.trace(measure)
    assert trace.scores_NS.shape == (600, 5)
    assert ((trace.scores_NS >= 0) & (trace.scores_NS <= 1)).all()
    before = np.full(len(trace), trace.exits - 1)
    for threshold in np.linspace(1, 0, 21):
        now = trace.exits_at(threshold)
        assert (now <= before).all()
        before = now
    assert trace.score(1.0).exits == (0, 0, 0, 0, 600)


def test_risk_control_takes_every_measure(made: Outcomes, measure: Measure) -> None:
    trace = made.trace(measure)
    chosen = controlled(trace, 0.02, 0.9)
    assert chosen is not None
    assert trace.score(chosen.thresholds).loss == pytest.approx(chosen.observed_loss)
    assert chosen.observed_loss < 0.02


def test_every_measure_is_offered_where_there_are_gates(made: Outcomes) -> None:
    assert measures_of(made) == OF_GATES
