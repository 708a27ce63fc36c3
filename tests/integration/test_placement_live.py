"""Agents of ``--layers auto`` over a real broker: spans are given, one agent is killed, others take over, nothing is lost."""

from __future__ import annotations

import pytest
from live import System, run_program, until
from offline import reference

from mdi_exit.span import LayerSpan, missing_layers

pytestmark = pytest.mark.broker

_LAYERS = 9
_MEMORY = "3.2MB"  # two agents can hold the model between them, one cannot


def _spans(logs: dict[str, str]) -> dict[str, LayerSpan]:
    """What each agent said last that it holds."""
    return {
        name: LayerSpan.parse(log.rsplit("ready: layers ", 1)[1].split()[0])
        for name, log in logs.items()
        if "ready: layers " in log
    }


def test_spans_are_given_and_lost_layers_taken_over(system: System) -> None:
    known = reference()
    agents = {name: system.agent(name, "auto", "--memory", _MEMORY) for name in ("one", "two", "three")}
    for agent in agents.values():
        agent.until_says("connected")
    source = system.source(
        *("--rate", "100/s", "--adapt", "none", "--exit-threshold", str(known.threshold), "--min-threshold", "0.1"),
        *("--limit", "2500"),
    )
    for agent in agents.values():
        agent.until_says("ready: layers")
    source.until_results(200)
    spans = _spans({name: agent.log for name, agent in agents.items()})
    assert not missing_layers(_LAYERS, spans.values())
    needed = [
        name for name in spans if missing_layers(_LAYERS, [span for other, span in spans.items() if other != name])
    ]
    told = run_program("mdi_exit.cli", "plan", "--broker", system.url, "--deployment", system.deployment)
    assert (told.returncode, told.stderr) == (0, "")
    assert all(name in told.stdout for name in ("one", "two", "three", "items/s at most", "as it is"))
    lost = agents.pop(needed[0])
    lost.kill()
    until(
        lambda: not missing_layers(_LAYERS, _spans({name: agent.log for name, agent in agents.items()}).values()),
        lambda: "\n".join(agent.log for agent in agents.values()),
    )
    source.until_completed(2500)
    expected = known.expected()
    for row in source.rows:
        label, number, _ = expected[row["id"].partition("#")[0]]  # the second time round
        assert (row["label"], row["exit"]) == (label, number)
    for agent in agents.values():
        assert agent.stop() == 0
