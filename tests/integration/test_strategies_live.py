"""An artifact of each strategy, trained briefly, gives over MQTT the labels and exits that it gives offline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from live import System

from mdi_exit.data import shipped
from mdi_exit.model.artifact import Artifact
from mdi_exit.model.manifest import Measure
from mdi_exit.outcomes import outcomes
from mdi_exit.trace import Trace

pytest.importorskip("torch", reason="needs the extra 'torch'")

from mdi_exit.training import command
from mdi_exit.training.strategies import jei

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(300)]

_IMAGES = 200
_CLEAR_OF_SCORES = 1e-4
STRATEGIES: dict[str, tuple[str, ...]] = {
    "joint": ("--epochs", "3"),
    "distill": ("--epochs", "3"),
    "frozen": ("--backbone-epochs", "2", "--epochs", "2"),
    "jei": ("--backbone-epochs", "2", "--warm-up-epochs", "3", "--epochs", "10", "--cost-weight", "0.1"),
}


def _trained(out: Path, strategy: str) -> Artifact:
    """Gates get their turns although a training this short has few batches."""
    flags = [
        "--data",
        "shipped",
        "--width",
        "0.25",
        "--threads",
        "1",
        "--batch-size",
        "32",
        "--exits",
        "1,4,8",
        "--limit",
        "640",
    ]
    assert command.main(["--out", str(out), "--strategy", strategy, *flags, *STRATEGIES[strategy]]) == 0
    return Artifact.open(out)


def _threshold(trace: Trace) -> float:
    """One that no score comes near, and at which some samples leave at the first exit and some do not: best half of them."""
    early_NE = trace.scores_NS[:, :-1]

    def spread(threshold: float) -> int:
        first, *later = trace.score(threshold).exits
        return min(first, sum(later))

    tried = [round(float(value), 6) for value in np.linspace(early_NE.min(), early_NE.max(), 500)]
    return max((one for one in tried if np.abs(early_NE - one).min() > _CLEAR_OF_SCORES), key=spread)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_labels_and_exits_over_mqtt_are_those_offline(
    system: System, tmp_path: Path, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jei, "BATCHES_A_TURN", 5)
    artifact = _trained(tmp_path / "model", strategy)
    measure: Measure = artifact.manifest.calibration.measure
    assert (measure == "gate") == (strategy == "jei")
    trace = outcomes(artifact, shipped().subset(np.arange(_IMAGES))).trace(measure)
    threshold = _threshold(trace)  # for gates, whose own is 0.5, this very number is in force too
    assert artifact.manifest.plan.threshold_at(0, threshold) == pytest.approx(threshold)
    exits_N = trace.exits_at(threshold)
    assert len(set(exits_N.tolist())) >= 2, "all leave at one exit: the test would show little"

    agents = [system.agent("first", "0-1"), system.agent("second", "2-8")]
    for agent in agents:
        agent.until_says("connected")
    source = system.source(
        "--input", f"shipped:{_IMAGES}", "--model", str(artifact.folder), "--rate", "max", "--adapt", "none",
        "--exit-threshold", str(threshold), "--min-threshold", "0.01",
    )  # fmt: skip
    source.until_completed(_IMAGES)
    rows = {int(row["id"].rpartition("/")[2]): row for row in source.rows}
    assert {node for row in source.rows for node in row["path"]} == {"first", "second"}
    assert {number: (row["label"], row["exit"]) for number, row in rows.items()} == {
        number: (int(trace.labels_NS[number, exit_number]), exit_number)
        for number, exit_number in enumerate(exits_N.tolist())
    }
    for number, row in rows.items():
        if measure == "max-probability":
            assert row["confidence"] == pytest.approx(float(trace.scores_NS[number, row["exit"]]), abs=1e-4)
