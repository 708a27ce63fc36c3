"""A scenario is read whole or refused in one line; arrivals have the mean that they state."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest

from mdi_exit.errors import UsageError
from mdi_exit.segments import SegmentKey
from mdi_exit.simulation.arrivals import Arrivals, Phase
from mdi_exit.simulation.scenario import Scenario, bandwidth, read_scenario
from mdi_exit.trace import Trace

COSTS = """
name = "three"
note = "Made up."
layer_macs = [8e6, 8e6, 16e6]
layer_bytes = [1000, 1000, 2000]
feature_bytes = [4000, 2000, 1000]
exit_layers = [0, 2]
exit_macs = [800000, 800000]
exit_bytes = [100, 100]
"""
MODEL = '[model]\ncosts = "three.toml"\ntrace = "trace.npz"\n'
TWO = MODEL + '[source]\nlayers = "0"\n[[agents]]\nname = "a"\nlayers = "1-2"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "three.toml").write_text(COSTS)
    trace((0.9, 0.95), (0.2, 0.7)).save(tmp_path / "trace.npz")
    trace((0.9, 0.95, 0.99)).save(tmp_path / "other.npz")
    return tmp_path


def trace(*scores: tuple[float, ...]) -> Trace:
    """All right; costs of no interest."""
    scores_NS = np.array(scores, np.float32)
    samples, exits = scores_NS.shape
    ones_S = np.ones(exits, np.int64)
    return Trace(
        measure="max-probability", scores_NS=scores_NS, labels_NS=np.ones((samples, exits), np.int32),
        truth_N=np.ones(samples, np.int32), layer_macs_L=ones_S, layer_bytes_L=ones_S, head_macs_S=ones_S,
        exit_layers_S=np.arange(exits), about={},
    )  # fmt: skip


def scenario(folder: Path, text: str) -> Scenario:
    file = folder / "s.toml"
    file.write_text(text)
    return read_scenario(file)


def refused(folder: Path, text: str) -> str:
    with pytest.raises(UsageError) as caught:
        scenario(folder, text)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(folder / "s.toml"), "s.toml")


FOLDER = Path(__file__).parents[2] / "benchmarks" / "scenarios"
TOPOLOGIES = ("two-node", "three-node-mesh", "three-node-circular", "five-node-mesh")
MODELS = ("mobilenetv2", "resnet50", "resnet50-bottleneck")


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.toml")), ids=lambda file: file.stem)
def test_the_scenarios_and_the_topologies_of_the_demo_are_read(file: Path) -> None:
    found = read_scenario(file)
    assert found.duration_s > 0
    assert found.note or file.stem.endswith(("-disjoint", "-overlapping"))
    assert 2 <= len(found.nodes) * found.cells <= 1000


def test_the_paper_s_topologies_are_there_with_each_model() -> None:
    wanted = {f"paper-{topology}-{model}" for topology in TOPOLOGIES for model in MODELS}
    assert wanted <= {file.stem for file in FOLDER.glob("*.toml")}
    thousand = read_scenario(FOLDER / "thousand-nodes.toml")
    assert (len(thousand.nodes), thousand.cells) == (20, 50)


def test_costs_and_outcomes_of_a_table(folder: Path) -> None:
    found = scenario(folder, TWO)
    assert found.artifact is None
    assert found.model.plan.exit_layers == (0, 2)
    assert found.trace is not None
    assert found.trace.scores_NS[1].tolist() == pytest.approx([0.2, 0.7])
    assert found.source.speed.seconds(SegmentKey(0, 1, True), 1, (0, 2)) == pytest.approx(8.8e6 / 8e9 + 0.5e-3)
    assert found.source.speed.seconds(SegmentKey(0, 1, True), 4, (0, 2)) == pytest.approx(4 * 8.8e6 / 8e9 + 0.5e-3)
    assert found.source.speed.seconds(SegmentKey(0, 1, False), 1, (0, 2)) == pytest.approx(8e6 / 8e9 + 0.5e-3)


def test_a_codec_makes_features_smaller(folder: Path) -> None:
    assert scenario(folder, TWO + '[run]\ncodec = "float16"\n').model.plan.feature_bytes == (2000, 1000, 500)
    assert scenario(folder, TWO + '[run]\ncodec = "int4+zstd"\n').model.plan.feature_bytes == (500, 250, 125)


def test_links_media_and_the_broker(folder: Path) -> None:
    found = scenario(
        folder,
        MODEL + '[links]\nbandwidth = "20Mbit/s"\ndelay = "2ms"\nmedium = "wifi"\n'
        '[[media]]\nname = "wifi"\nbandwidth = "54Mbit/s"\nframe = "100ms"\n[broker]\nmessages = "500/s"\n'
        '[source]\nlayers = "0"\nup = "1MB/s"\n[[agents]]\nname = "a"\nlayers = "1-2"\nloss = 0.1\n'
        '[[changes]]\nat = "5s"\nnode = "a"\nbandwidth = "2Mbit/s"\n'
        '[[changes]]\nat = "9s"\nnode = "a"\nbandwidth = "20Mbit/s"\n'
        '[[changes]]\nat = "9s"\nnode = "a"\nspeed = 0.5\n',
    )
    source, agent = found.nodes
    assert (source.link.up_bytes_per_s, source.link.down_bytes_per_s) == (1e6, 2.5e6)
    assert (agent.link.up_bytes_per_s, agent.link.loss, agent.link.medium) == (2.5e6, 0.1, "wifi")
    assert found.media["wifi"].bytes_per_s == 54e6 / 8
    assert found.broker.messages_per_s == 500
    change = found.changes[0].link
    assert change is not None
    assert (change.up_bytes_per_s, change.loss) == (2.5e5, 0.1)
    assert [change.link for change in found.changes[1:]] == [agent.link, None]  # as in the beginning, and as it is


def test_groups_are_repeated_and_know_their_neighbours(folder: Path) -> None:
    found = scenario(
        folder,
        MODEL + '[source]\nneighbours = ["edge"]\n'
        '[[agents]]\nname = "edge"\ncount = 3\nlayers = "0-2"\nneighbours = ["next", "source"]\n[run]\ncells = 50\n',
    )
    assert [node.name for node in found.agents] == ["edge-1", "edge-2", "edge-3"]
    assert found.source.neighbours == ("edge-1", "edge-2", "edge-3")
    assert found.agents[2].neighbours == ("edge-1", "source")
    assert found.cells == 50
    assert [node.name for node in found.reachable(found.agents[0])] == ["source", "edge-2"]


def test_flags_outrank_the_file(folder: Path) -> None:
    found = scenario(folder, TWO + '[run]\nduration = "30s"\nseed = 3\n')
    other = found.outranked(seed=4, threshold=1.0, offloading="never")
    assert (other.seed, other.duration_s, other.policy.threshold, other.policy.offloading) == (4, 30, 1.0, "never")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (TWO + "[runs]\n", "s.toml: expected the keys agents, broker, changes, links, media, model, note, run, source, "
         "got runs; did you mean run?"),
        (TWO + '[run]\nrat = "3/s"\n', "s.toml [run]: expected the keys"),
        (MODEL + '[source]\nlayers = "0"\n', "all layers from 0 to 2 at some node, got no node with layer 1, 2"),
        (TWO + '[[agents]]\nname = "a"\nlayers = "1"\n', "s.toml: expected each name once, got a twice"),
        (TWO + '[[agents]]\nname = "b"\nlayers = "1-3"\n', "s.toml: layers of b: expected layers from 0 to 2, got 1-3"),
        (TWO + 'neighbours = ["sauce"]\n', "got 'sauce'; did you mean source?"),
        (TWO + 'memory = "3kB"\n', "s.toml: layers of a: expected weights of at most 3000 bytes, got 3100"),
        (TWO + 'memory = "3"\n', "s.toml [[agents]] number 1 memory: expected an amount of memory such as 512MB, got '3'"),
        (TWO + 'medium = "wifi"\n', "s.toml: link of a: expected a medium of [[media]], got 'wifi'"),
        (TWO + 'bandwidth = "20"\n', "bandwidth: expected a bandwidth such as 20Mbit/s or 2MB/s, or unlimited, got '20'"),
        (TWO + "layer_seconds = [1, 2]\n", "layer_seconds: expected 3 numbers, got 2"),
        (TWO + 'profile = "laptop"\nlayer_seconds = [1, 2, 3]\n', "expected one of profile, layer_seconds, got"),
        (TWO + '[[changes]]\nat = "5s"\nnode = "b"\nalive = false\n', "expected the name of a node, got 'b'"),
        (TWO + '[[changes]]\nat = "5s"\nnode = "a"\n', "expected a change: speed, alive, bandwidth, delay or loss, got none"),
        (TWO + '[run]\narrivals = "poison"\n', "expected one of fixed, poisson, bursts, recorded, got 'poison'; did you mean "
         "poisson?"),
        (TWO + '[run]\narrivals = "poisson"\n', "rate: expected items a second, with arrivals = poisson, got none"),
        (TWO + '[run]\narrivals = "recorded"\n', "times: expected a file of moments"),
        (TWO.replace("trace.npz", "none.npz"), "none.npz: expected a readable .npz file"),
        ("[model]\ncosts = 'three.toml'\n", "s.toml [model]: expected a trace beside costs, got none"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_one_line(folder: Path, text: str, says: str) -> None:
    assert says in refused(folder, text)


def test_a_trace_of_another_model_is_refused(folder: Path) -> None:
    assert "exits: expected 2, as the model has, got 3" in refused(folder, TWO.replace("trace.npz", "other.npz"))


@pytest.mark.parametrize(
    ("text", "bytes_per_s"), [("8bit/s", 1.0), ("2MB", None), ("2MB/s", 2e6), ("1.5Gbit/s", 187.5e6)]
)
def test_bandwidths(text: str, bytes_per_s: float | None) -> None:
    if bytes_per_s is None:
        with pytest.raises(UsageError):
            bandwidth(text)
    else:
        assert bandwidth(text) == bytes_per_s


@pytest.mark.parametrize(
    "arrivals",
    [
        Arrivals("fixed", (Phase(0, 20.0),)),
        Arrivals("poisson", (Phase(0, 20.0),)),
        Arrivals("bursts", (Phase(0, 20.0),), burst=8),
        Arrivals("poisson", (Phase(0, 10.0), Phase(500, 30.0))),
        Arrivals("recorded", times_s=tuple(number / 20 for number in range(20_000))),
    ],
    ids=lambda one: f"{one.kind}-{len(one.phases)}",
)
def test_arrivals_have_their_mean(arrivals: Arrivals) -> None:
    times = list(arrivals.times(1000.0, Random(1)))
    assert times == sorted(times)
    assert times[-1] < 1000
    assert len(times) == pytest.approx(20_000, rel=0.06)  # of bursts the deviation is 8/√20000 = 2 %
    assert times == list(arrivals.times(1000.0, Random(1)))


def test_a_day_rises_and_falls(folder: Path) -> None:
    found = scenario(folder, TWO + '[run.day]\nlength = "240s"\nlow = "10/s"\nhigh = "50/s"\n')
    rates = [found.arrivals.rate_at(moment) or 0.0 for moment in (0, 119, 239)]
    assert rates == pytest.approx([10, 50, 10], abs=0.5)
    assert found.duration_s == 240
    assert sum(1 for _ in found.arrivals.times(240, Random(0))) == pytest.approx(30 * 240, rel=0.01)
