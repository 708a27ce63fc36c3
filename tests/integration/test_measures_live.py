"""Every measure of confidence, with a threshold for each exit and a promise, over MQTT: the results of the trace."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from gated import gated_artifact
from live import System

from mdi_exit.confidence import MEASURES
from mdi_exit.data import shipped
from mdi_exit.model.artifact import rewritten
from mdi_exit.model.manifest import Calibration, Measure, Promise
from mdi_exit.outcomes import outcomes

pytestmark = pytest.mark.broker

_COUNT = 200
_KNOB = 0.6
_NEAR = 1e-4
_OF_GATES = [measure for measure in MEASURES if measure != "frame-entropy"]  # that one is of branches: test_speech_live


@pytest.mark.parametrize("measure", _OF_GATES)
def test_items_leave_where_the_trace_says_and_the_promise_is_said(
    system: System, tmp_path: Path, measure: Measure
) -> None:
    artifact = gated_artifact(tmp_path / "model", measure)
    trace = outcomes(artifact, shipped().subset(np.arange(_COUNT))).trace(measure)
    medians = [round(float(np.median(trace.scores_NS[:, exit_])), 3) for exit_ in range(trace.exits - 1)]
    thresholds = [0.5] * len(medians) if measure == "patience" else medians
    exits = [
        msgspec.structs.replace(spec, threshold=threshold)
        for spec, threshold in zip(artifact.manifest.exits, (*thresholds, None), strict=True)
    ]
    promise = Promise(max_accuracy_loss=0.02, confidence=0.9, samples=_COUNT, observed_loss=0.01)
    calibration = Calibration(measure=measure, threshold=_KNOB, promise=promise)
    manifest = msgspec.structs.replace(artifact.manifest, exits=tuple(exits), calibration=calibration)
    folder = rewritten(artifact, manifest, artifact.folder).folder

    agents = [system.agent("agent-2", "2-4"), system.agent("agent-5", "5-8")]
    for agent in agents:
        agent.until_says("connected")
    source = system.source("--model", str(folder), "--layers", "0-1", "--rate", "max", "--limit", str(_COUNT))
    source.until_completed()

    assert f"promised from threshold {_KNOB} up: at most 2 % of items wrong by leaving early" in source.log
    exit_N = trace.exits_at(thresholds)
    assert len(set(exit_N.tolist())) > 1
    rows = {row["id"]: row for row in source.rows}
    assert len(rows) == _COUNT
    for index in range(_COUNT):
        row = rows[f"shipped/{index}"]
        clear = np.abs(trace.scores_NS[index, :-1] - thresholds).min() > _NEAR
        if clear or measure == "patience":
            assert (row["exit"], row["label"]) == (exit_N[index], trace.labels_NS[index, exit_N[index]])
