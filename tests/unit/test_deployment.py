from __future__ import annotations

from pathlib import Path

import pytest

from mdi_exit.config import resolve
from mdi_exit.demo.config import DemoSettings
from mdi_exit.demo.deployment import PhaseSpec, RunSpec, read_deployment
from mdi_exit.errors import UsageError
from mdi_exit.model.artifact import sealed
from mdi_exit.model.manifest import AudioSpec, ExitSpec, GraphFile, InputSpec, LayerSpec, Manifest
from mdi_exit.span import LayerSpan

SCENARIOS = Path(__file__).parents[2] / "benchmarks" / "scenarios"
PAPER = [
    f"{kind}-{spans}"
    for kind in ("two-node", "three-node-mesh", "three-node-circular", "five-node-mesh")
    for spans in ("disjoint", "overlapping")
]
GOOD = """
[source]
layers = "0-3"
neighbours = ["a"]

[[agents]]
name = "a"
layers = "4-8"
neighbours = []
profile = "jetson-nano"
join_at = "2s"

[run]
rate = "40/s"
duration = 30
adapt = "rate"
exit_threshold = 0.8
seed = 7
"""


def written(folder: Path, content: str) -> Path:
    file = folder / "run.toml"
    file.write_text(content)
    return file


def test_what_is_given_elsewhere_outranks_the_file(tmp_path: Path) -> None:
    run = read_deployment(written(tmp_path, GOOD)).run
    assert run.outranked(()) == run
    assert run.outranked({"nodes", "out"}) == run
    assert run.outranked({"rate", "duration"}) == RunSpec(adapt="rate", exit_threshold=0.8, seed=7)
    assert run.outranked({"adapt", "exit_threshold", "seed"}) == RunSpec(rate=40.0, duration_s=30.0)
    phases = RunSpec(duration_s=4.0, phases=(PhaseSpec("calm", 5.0, 4.0),))
    assert phases.outranked({"duration"}).phases == phases.phases, "they are cut short"
    assert phases.outranked({"rate"}) == RunSpec(duration_s=4.0)


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_topologies(name: str) -> None:
    found = read_deployment(SCENARIOS / f"{name}.toml")
    count = {"two": 2, "three": 3, "five": 5}[name.partition("-")[0]]
    assert len(found.nodes) == count
    spans = [node.layers for node in found.nodes]
    assert all(span is not None for span in spans), "the source runs layers too"
    assert {node.profile for node in found.nodes} == {"jetson-nano"}
    held = sum(len(span) for span in spans if span)
    assert (held == 9) == name.endswith("disjoint")
    if "circular" in name:
        names = [node.name for node in found.nodes]
        assert [node.neighbours for node in found.nodes] == [(one,) for one in [*names[1:], names[0]]]
    else:
        assert all(len(found.reachable(node)) == count - 1 for node in found.nodes)


def test_a_file_says_everything_about_a_run(tmp_path: Path) -> None:
    found = read_deployment(written(tmp_path, GOOD))
    assert found.source.name == "source"
    agent = found.agents[0]
    assert (agent.layers, agent.neighbours, agent.profile, agent.join_at_s) == (LayerSpan(4, 9), (), "jetson-nano", 2.0)
    assert (found.run.rate, found.run.duration_s, found.run.adapt) == (40.0, 30.0, "rate")
    assert (found.run.exit_threshold, found.run.seed) == (0.8, 7)
    assert read_deployment(written(tmp_path, GOOD.replace('"40/s"', '"max"'))).run.rate == "max"


def test_neighbours_left_out_are_all_others_and_a_source_may_run_nothing(tmp_path: Path) -> None:
    found = read_deployment(written(tmp_path, '[[agents]]\nname = "a"\nlayers = "0-8"\n'))
    assert found.source.layers is None
    assert [node.name for node in found.reachable(found.source)] == ["a"]
    assert found.run.rate is None


PHASED = """
[source]
layers = "0-8"
[run]
adapt = "threshold"
[[run.phases]]
name = "calm"
rate = "15/s"
duration = "10s"
[[run.phases]]
name = "load step"
rate = 60
duration = "500ms"
"""


def test_phases_follow_one_another(tmp_path: Path) -> None:
    run = read_deployment(written(tmp_path, PHASED)).run
    assert run.phases == (PhaseSpec("calm", 15.0, 10.0), PhaseSpec("load step", 60.0, 0.5))
    assert (run.rate, run.duration_s, run.adapt) == (None, 10.5, "threshold")


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ('adapt = "threshold"', "rate = 3", "[run]: expected rate and duration in the phases only, got rate beside"),
        ('duration = "10s"', "", "[run] phase 1: expected a key duration, got none"),
        ("rate = 60", "rat = 60", "[run] phase 2: expected the keys name, rate, duration, got rat; did you mean"),
        ("rate = 60", 'rate = "all"', "[run] phase 2 rate: expected items a second"),
        ("rate = 60", 'rate = "max"', "[run] phase 2 rate: expected items a second such as 25/s (max is for"),
        ('"load step"', '"a=b"', "[run] phase 2 name: expected a name without , = @, got 'a=b'"),
    ],
)
def test_mistakes_in_phases_are_told_by_place(tmp_path: Path, old: str, new: str, line: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_deployment(written(tmp_path, PHASED.replace(old, new, 1)))
    assert line in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("[run]", "[runs]", "got runs; did you mean run?"),
        ("profile", "profil", "got profil; did you mean profile?"),
        ('"jetson-nano"', '"jetson"', "[[agents]] number 1 profile: expected"),
        ('name = "a"', 'name = "source"', "expected each name once, got source twice"),
        ('name = "a"', 'name = "a/b"', "number 1 name: expected 1 to 40 letters"),
        ('name = "a"', "", "number 1: expected a key name, got none"),
        ('layers = "4-8"', "", "number 1: expected a key layers, got none"),
        ('layers = "4-8"', 'layers = "5-8"', "no node with layer 4"),
        ('layers = "4-8"', 'layers = "4-9"', "layers of a: expected layers from 0 to 8, got 4-9"),
        ('layers = "4-8"', "layers = [4, 8]", "number 1 layers: expected text or a number, got a TOML list"),
        ('["a"]', '["b"]', "neighbours of source: expected names of other nodes, got 'b'"),
        ('["a"]', '["source"]', "neighbours of source: expected names of other nodes, got itself"),
        ('["a"]', '["a", "a"]', "neighbours of source: expected each name once, got a twice"),
        ('["a"]', '"a"', "[source] neighbours: expected a list of names"),
        ('["a"]', "[]", "neighbours of source: expected one that holds layer 4, got nobody"),
        (
            '"rate"',
            '"rat"',
            "[run] adapt: expected one of none, rate, threshold, drift-plus-penalty, optimiser, got 'rat'",
        ),
        ("seed = 7", "seed = -1", "[run] seed: expected a whole number"),
        ('join_at = "2s"', 'join_at = "soon"', "join_at: expected a duration"),
    ],
)
def test_mistakes_are_told_by_place(tmp_path: Path, old: str, new: str, line: str) -> None:
    assert old in GOOD
    with pytest.raises(UsageError) as caught:
        read_deployment(written(tmp_path, GOOD.replace(old, new, 1)))
    assert line in str(caught.value)


def test_a_ring_in_the_wrong_order_has_no_way_to_the_next_layer(tmp_path: Path) -> None:
    content = (SCENARIOS / "three-node-circular-disjoint.toml").read_text()
    swapped = content.replace('neighbours = ["a"]', 'neighbours = ["b"]')
    with pytest.raises(UsageError, match="neighbours of source: expected one that holds layer 2, got b"):
        read_deployment(written(tmp_path, swapped))


def test_a_dead_end_behind_an_optional_hop_is_found(tmp_path: Path) -> None:
    """The source could do layers 0-5 itself, but may also hand layer 3 to a, which cannot get on from there."""
    content = """
[source]
layers = "0-8"
[[agents]]
name = "a"
layers = "3-5"
neighbours = []
"""
    with pytest.raises(UsageError, match="neighbours of a: expected one that holds layer 6, got nobody"):
        read_deployment(written(tmp_path, content))


INPUTS = {
    "image": InputSpec(kind="image", shape=(1, 4, 4), mean=(0.5,), std=(0.5,)),
    "audio": InputSpec(kind="audio", shape=(6, 2), mean=(0.0, 0.0), std=(1.0, 1.0), audio=AudioSpec()),
    "tensor": InputSpec(kind="tensor", shape=(3,)),
}


@pytest.mark.parametrize(("kind", "wanted"), [("image", "shipped"), ("audio", "test"), ("tensor", "test")])
def test_the_demo_gives_a_model_what_it_takes(tmp_path: Path, kind: str, wanted: str) -> None:
    graph, taken = GraphFile(file="a.onnx", bytes=10, sha256="0" * 64), INPUTS[kind]
    layer = LayerSpec(graph=graph, in_shape=taken.shape, out_shape=(2,), macs=1, params=0)
    exits = (ExitSpec(layer=0, graph=graph, macs=1, params=0),)
    manifest = Manifest(format=2, name="m", input=taken, labels=("a", "b"), layers=(layer,), exits=exits)
    (tmp_path / "model.json").write_bytes(sealed(manifest))

    def resolved(*flags: str) -> tuple[str, str]:
        argv = ["--artifact", str(tmp_path), *flags]
        found = resolve(DemoSettings, argv, {}, prog="demo", description="", section="demo")
        return found.settings.input.text, found.origins["input"]

    assert resolved() == (wanted, "default" if kind == "image" else f"model {tmp_path}: takes {kind}")
    assert resolved("--input", "text:a.csv") == ("text:a.csv", "flag --input")
