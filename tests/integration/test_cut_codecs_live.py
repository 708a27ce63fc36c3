"""Over a real broker: features travel in the codec of their cut, and through its bottleneck, to the same labels."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from live import Listener, Program, System

from mdi_exit.confidence import probabilities
from mdi_exit.data import inputs_of, shipped
from mdi_exit.model.artifact import DEFAULT_MODEL, Artifact
from mdi_exit.model.variant import Variant, write_variant
from mdi_exit.outcomes import outcomes
from mdi_exit.tensors import decode_tensor, encoded_size
from mdi_exit.wire import Features, decode

pytestmark = pytest.mark.broker

SPANS = {"near": "2-3", "middle": "4-5", "far": "6-8"}


def seen_features(listener: Listener) -> list[tuple[Features, bytes]]:
    found = []
    for topic, frame, _ in [*listener.messages]:
        if "/layers/" in topic:
            message, body = decode(frame)
            assert isinstance(message, Features)
            found.append((message, bytes(body)))
    return found


def run(system: System, *flags: str, own: str | None = "0-1", spans: dict[str, str] = SPANS) -> list[Program]:
    """A run to its end, each agent having connected before; the agents go on."""
    agents = [system.agent(name, span) for name, span in spans.items()]
    for agent in agents:
        agent.until_says("connected")
    layers = ["--layers", own] if own else []
    source = system.source("--rate", "max", "--min-threshold", "0.1", *layers, *flags)
    source.until_completed()
    return agents


def test_each_cut_has_its_codec_and_the_others_that_of_the_deployment(system: System, tmp_path: Path) -> None:
    codecs = {2: "int8", 4: "int4+zstd"}
    artifact = write_variant(Artifact.open(DEFAULT_MODEL), tmp_path / "model", Variant(codecs))
    with Listener(system.url, "mdi/test/layers/#") as listener:
        flags = ("--model", str(artifact.folder), "--codec", "float16", "--exit-threshold", "1", "--limit", "60")
        near, middle, _ = run(system, *flags)
        seen = seen_features(listener)
    by_layer, sizes = defaultdict(set), defaultdict(int)
    for message, body in seen:
        by_layer[message.next_layer].add(message.codec)
        sizes[message.sender] += len(body)
        x = decode_tensor(message.codec, message.shape, body)
        assert x.shape == artifact.manifest.in_shape(message.next_layer)
        assert np.isfinite(x).all()
    assert by_layer == {2: {"int8"}, 4: {"int4+zstd"}, 6: {"float16"}}
    assert len(seen) == 3 * 60
    # What the nodes count is what the broker has carried: exactly, or where compressed but for the last message's size.
    most = encoded_size("int4+zstd", artifact.manifest.in_shape(4))
    assert near.metric('mdi_exit_link_bytes_total{to="middle"}') == pytest.approx(sizes["near"], abs=most)
    assert middle.metric('mdi_exit_link_bytes_total{to="far"}') == sizes["middle"]


def test_agents_learn_the_codec_of_the_deployment(system: System) -> None:
    with Listener(system.url, "mdi/test/layers/#") as listener:
        run(system, "--codec", "int8", "--exit-threshold", "1", "--limit", "40")
        seen = seen_features(listener)
    assert {(message.next_layer, message.codec) for message, _ in seen} == {(2, "int8"), (4, "int8"), (6, "int8")}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The shipped model with bottlenecks before layers 3 and 6, trained for a moment."""
    torch = pytest.importorskip("torch", reason="needs the extra 'torch'")
    from mdi_exit.engine.torch import network_of
    from mdi_exit.training.bottleneck import BottleneckConfig, exported, train_bottleneck

    artifact = Artifact.open(DEFAULT_MODEL)
    network = network_of(artifact)
    images = torch.from_numpy(inputs_of(shipped().images_NHWC[:512], artifact.manifest.input))
    config = BottleneckConfig(epochs=3, batch_size=32, learning_rate=1e-2, threads=1)
    made = {}
    for cut, channels, stride in ((3, 8, 2), (6, 16, 1)):
        made[cut] = train_bottleneck(network, cut, images, channels, stride, config, before=made).autoencoder
    halves = {cut: exported(one, artifact.manifest.layers[cut].in_shape) for cut, one in made.items()}
    return write_variant(artifact, tmp_path_factory.mktemp("small") / "model", Variant({}, halves))


@pytest.mark.parametrize(
    ("own", "spans"),
    [("0-2", {"middle": "3-5", "far": "6-8"}), ("0-3", {"far": "4-8"}), (None, {"near": "0-4", "far": "3-8"})],
    ids=["both on cuts", "none on a cut", "overlapping"],
)
def test_labels_through_bottlenecks_are_those_of_one_process(
    system: System, small: Artifact, own: str | None, spans: dict[str, str]
) -> None:
    made = outcomes(small, shipped())
    scores_NS = np.stack([probabilities(logits_NK).max(1) for logits_NK in made.logits_SNK], 1)
    labels_NS = made.logits_SNK.argmax(2).T
    threshold = next(
        t for t in np.arange(0.7, 0.9, 0.0007).round(6).tolist() if np.abs(scores_NS - t).min() > 1e-5
    )  # that no score comes near
    early_NS = scores_NS > threshold
    early_NS[:, -1] = True
    exits_N = early_NS.argmax(1)
    with Listener(system.url, "mdi/test/layers/#") as listener:
        run(
            system, "--model", str(small.folder), "--exit-threshold", str(threshold), "--limit", "600",
            own=own, spans=spans,
        )  # fmt: skip
        seen = seen_features(listener)
    for message, _ in seen:
        assert message.shape == small.manifest.in_shape(message.next_layer)
    source = system.programs[-1]
    rows = source.rows  # type: ignore[attr-defined]
    assert len(rows) == 600
    assert len({row["exit"] for row in rows}) > 1
    for row in rows:
        index = int(row["id"].rpartition("/")[2])
        number = int(exits_N[index])
        assert (row["label"], row["exit"]) == (int(labels_NS[index, number]), number), row["id"]
