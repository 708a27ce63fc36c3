"""What every offloading policy must keep to, whatever its rule: new ones are tested by being in the table."""

from __future__ import annotations

from itertools import count
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdi_exit.events import InputEnded, InputOffered
from mdi_exit.policy.offloading import HERE, OFFLOADING, PLACING, Candidate, Own, forward
from mdi_exit.segments import ModelPlan
from mdi_exit.simulation import SimulatedNetwork, SimulatedNode
from mdi_exit.source_state import SourceConfig, SourceState
from mdi_exit.span import LayerSpan
from mdi_exit.worker_config import WorkerConfig
from mdi_exit.worker_state import WorkerState

PLAN = ModelPlan("ab" * 16, 4, (1, 3), (1000,) * 4)
DUE = st.dictionaries(st.sampled_from([HERE, "n0", "n1", "n2", "gone"]), st.floats(-4, 4))
OWN = st.builds(Own, st.integers(0, 50), st.integers(1, 50), st.floats(0, 1e9), DUE)
ROWS = st.lists(st.tuples(st.floats(0, 50), st.floats(0, 1e9), st.floats(0, 1e9)), max_size=8)


def candidates(rows: list[tuple[float, float, float]]) -> tuple[Candidate, ...]:
    return tuple(Candidate(f"n{number}", *row) for number, row in enumerate(rows))


@pytest.mark.parametrize("policy", OFFLOADING.values(), ids=OFFLOADING.keys())
@given(own=OWN, rows=ROWS, seed=st.integers(0, 1000))
def test_a_policy_names_a_candidate_or_none_and_draws_only_from_its_rng(policy, own, rows, seed) -> None:
    """Those that decide for each task once may say ``HERE`` as well."""
    offered = candidates(rows)
    chosen = policy(own, offered, Random(seed))
    here = {HERE} if policy in {OFFLOADING[name] for name in PLACING} else set()
    assert chosen is None or chosen in {candidate.name for candidate in offered} | here
    assert policy(own, offered, Random(seed)) == chosen
    assert policy(own, (), Random(seed)) is None


@given(rows=ROWS, seed=st.integers(0, 1000))
def test_forwarding_names_a_candidate_if_there_is_one(rows, seed) -> None:
    offered = candidates(rows)
    chosen = forward(offered, Random(seed))
    assert (chosen is None) == (not offered)
    if 0 < len(offered) <= 4:
        least_s = min(candidate.cost_s for candidate in offered)
        cost_s = next(c for c in offered if c.name == chosen).cost_s
        assert cost_s <= least_s + max(0.1 * least_s, 1e-3)


@pytest.mark.parametrize("name", OFFLOADING)
@pytest.mark.parametrize("span", ["0-3", "0-1", None])
def test_all_items_end_under_every_policy(name: str, span: str | None) -> None:
    rng = Random(1)
    net = SimulatedNetwork(PLAN, lambda item, number: (item, (item % 10) / 10), rng, validate=True)
    numbers = count()
    net.draw = lambda: InputOffered(str(n), None, 1000) if (n := next(numbers)) < 80 else InputEnded()
    layers = LayerSpan.parse(span) if span else None
    source = SourceState(SourceConfig(run=7, threshold=0.5), WorkerConfig("source", 1, layers, offloading=name), rng)
    net.add(SimulatedNode(source, lambda key, batch: 0.01 * batch * (key.stop - key.entry)))
    for incarnation, (agent, held) in enumerate({"a": "0-3", "b": "2-3", "c": "1-3"}.items(), start=2):
        state = WorkerState(WorkerConfig(agent, incarnation, LayerSpan.parse(held), offloading=name), rng)
        net.add(SimulatedNode(state, lambda key, batch: 0.02 * batch * (key.stop - key.entry)))
    net.run(60.0, while_=lambda: not source.done)
    assert source.done
    assert (source.completed, source.errors) == (80, 0)
    assert source.retried <= 0.1 * 80 + 20, "a long queue may look like a loss, within the budget"
    if name == "never" and span == "0-3":
        assert source.worker.totals.exited == 80, "what can be done here is done here"
    if name != "never" and span == "0-3":
        assert source.worker.totals.exited < 80
