"""The benchmark of policies: what each arm changes, the table, and a small run of all of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mdi_exit.errors import UsageError
from mdi_exit.simulation.scenario import read_scenario
from mdi_exit.span import LayerSpan
from mdi_exit.trial.policies import ARMS, Row, main, markdown

FOLDER = Path(__file__).parents[2] / "benchmarks" / "scenarios"
MESH = FOLDER / "paper-three-node-mesh-mobilenetv2.toml"


def test_arms_change_what_they_say() -> None:
    scenario = read_scenario(MESH)
    plain = ARMS["no-early-exit"].applied(scenario, 0.7, None)
    assert (plain.policy.threshold, plain.policy.adapt, plain.arrivals.saturating) == (1.0, "none", True)
    paced = ARMS["paper"].applied(scenario, 0.7, 40.0)
    assert (paced.policy.threshold, paced.policy.adapt, paced.arrivals.rate_at(1.0)) == (0.7, "threshold", 40.0)
    alone = ARMS["source-only"].applied(scenario, 0.7, None)
    assert (alone.source.span, alone.reachable(alone.source)) == (LayerSpan(0, 9), ())
    everywhere = ARMS["data-distributed"].applied(scenario, 0.7, None)
    assert {node.span for node in everywhere.nodes} == {LayerSpan(0, 9)}


def row(policy: str, at: float, rate: float, accuracy: float) -> Row:
    return Row("s", policy, "threshold", at, rate, accuracy, 0, 100, 0, 0.1, 0.5)


def test_the_table_gives_the_best_rate_within_a_point() -> None:
    rows = [row("no-early-exit", 1.0, 10.0, 0.92), row("paper", 0.5, 40.0, 0.90), row("paper", 0.9, 30.0, 0.911)]
    lines = markdown(rows, {"s": [(50.0, 0.93)]}).splitlines()
    assert lines[2] == "| s | no-early-exit | 10.0 | 92.0 | 1.00 | 50 |"
    assert lines[3] == "| s | paper | 30.0 | 91.1 | 3.00 | 50 |"


@pytest.mark.slow
def test_a_small_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--policies", "no-early-exit,paper", "--duration", "1", "--jobs", "1", "--out", str(tmp_path)]
    assert main([str(MESH), *flags]) == 0
    assert "| paper-three-node-mesh-mobilenetv2 | paper |" in capsys.readouterr().out
    record = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert len(record["rows"]) == 1 + 7 + 2 * 5
    assert all(one["efficiency"] is None or one["efficiency"] <= 1 + 1e-6 for one in record["rows"])
    assert next(tmp_path.glob("*.png")).read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UsageError, match="did you mean paper"):
        main([str(MESH), "--policies", "papr", "--out", str(tmp_path)])
