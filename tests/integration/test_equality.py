"""A split run gives what the whole model gives in one process: labels and exits exactly, for all shipped images."""

from __future__ import annotations

import pytest
from live import System
from offline import Reference, reference

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module", name="reference")
def of_one_process() -> Reference:
    return reference()


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
