"""Messages that do not fit, to an edge and to a cloud of hierarchical training, without a broker."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra 'torch'")

import torch

from mdi_exit import values
from mdi_exit.errors import MdiExitError, StartError, UsageError, WireError
from mdi_exit.hierarchical.cloud import CloudWorker
from mdi_exit.hierarchical.config import HierarchicalSettings
from mdi_exit.hierarchical.edge import EdgeWorker
from mdi_exit.hierarchical.lessons import packed
from mdi_exit.hierarchical.parts import CloudPart, EdgePart, WholePart, state_bytes
from mdi_exit.hierarchical.study import Study
from mdi_exit.limits import MAX_SAMPLES
from mdi_exit.training.checkpoint import write_checkpoint
from mdi_exit.wire import CloudReport, EdgeReport, Lesson, Message, Weights, crc32, decode, encode

CUT, BATCH, RUN = 2, 4, 7
SHAPE = (BATCH, 32, 4, 4)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "some.npz"
    images, labels = np.zeros((40, 16, 16), np.uint8), np.arange(40) % 2
    np.savez(path, x=images, y=labels, x_test=images, y_test=labels)
    return path


@pytest.fixture
def settings(data: Path, tmp_path: Path) -> HierarchicalSettings:
    return HierarchicalSettings(
        broker=values.brokers("mqtt://127.0.0.1:1"), name="cloud", out=tmp_path / "model", data=f"npz:{data}",
        model="small_vgg11", width=0.125, batch_size=BATCH, augment="none", cut=CUT, learning_rate=0.02,
    )  # fmt: skip


class Cloud(CloudWorker):
    """Says into a list what it would say to others; ``begun``: as after its beginning."""

    def __init__(self, settings: HierarchicalSettings, *, begun: bool = True) -> None:
        self.lines: list[str] = []
        super().__init__(settings, Study(settings), asyncio.Event(), self.lines.append)
        self.sent: list[Message] = []
        self.post.send = lambda _to, message, *_, **__: self.sent.append(message) or True  # type: ignore[method-assign]
        if begun:
            network = self.study.network(CUT).network
            self.part = CloudPart(network, CUT, 0.02)
            self.members.form = EdgePart(network, CUT, 0.02).state()

    def gets(self, message: Message, payload: bytes = b"") -> None:
        self._receive("edge1", message, memoryview(payload))

    def report(self, **more: Any) -> EdgeReport:
        usual: dict[str, Any] = {"state": "training", "samples": 40, "step": 0, "steps": 30, "terms": self.study.terms}
        return EdgeReport(**{"incarnation": 1, "run": self.post.incarnation, **usual, **more})

    def lesson(self, **more: Any) -> Lesson:
        usual: dict[str, Any] = {
            "run": self.post.incarnation, "incarnation": 1, "seq": 1, "step": 0, "steps": 30, "what": "features",
            "codec": "int8", "shape": SHAPE, "count": BATCH, "crc": 0,
        }  # fmt: skip
        return Lesson(**{**usual, **more})


def edge_worker(settings: HierarchicalSettings) -> EdgeWorker:
    own = replace(settings, role="edge", name="edge1")
    return EdgeWorker(own, Study(own), asyncio.Event())


def word(edge: EdgeWorker, **more: Any) -> CloudReport:
    usual: dict[str, Any] = {"run": RUN, "incarnation": edge.post.incarnation, "cut": CUT, "allowed": 1, "settled": 0}
    return CloudReport(**{**usual, "terms": edge.study.terms, "study": RUN, **more})


def hears(edge: EdgeWorker, message: Message, payload: bytes = b"") -> None:
    edge._receive("cloud", message, memoryview(payload))


def trains(edge: EdgeWorker) -> EdgePart:
    """As after it was told the cut."""
    hears(edge, word(edge))
    edge.part = EdgePart(edge.study.network(CUT).network, CUT, 0.02)
    edge._pieces = type(edge._pieces)(1 << 20)
    return edge.part


@pytest.mark.parametrize(
    "other",
    [{"seed": 1}, {"width": 0.25}, {"batch_size": 5}, {"learning_rate": 0.03}, {"edges": 2}, {"schemes": ("split",)},
     {"model": "small_vgg16"}, {"input_shape": (3, 16, 16)}],
)  # fmt: skip
def test_settings_that_have_to_agree_and_do_not_have_other_terms(
    settings: HierarchicalSettings, other: dict[str, Any]
) -> None:
    alike = replace(settings, role="edge", name="edge7", epochs=9, window=2, shard=(1, 1), codec="float16")
    assert Study(alike).terms == Study(settings).terms
    assert Study(replace(settings, **other)).terms != Study(settings).terms


def test_an_edge_of_other_settings_does_not_count_and_is_told(settings: HierarchicalSettings) -> None:
    cloud = Cloud(settings)
    for _ in range(3):
        cloud.gets(cloud.report(terms=5))
    assert cloud.members.missing == 1
    assert [message.terms for message in cloud.sent if isinstance(message, CloudReport)] == [cloud.study.terms] * 3
    assert cloud.lines == ["edge1 is not taken: its settings (model, data, seed, ...) are not ours"]
    cloud.gets(cloud.report())
    assert cloud.members.missing == 0


def test_an_edge_with_other_settings_than_the_clouds_ends_with_status_2(settings: HierarchicalSettings) -> None:
    edge = edge_worker(settings)
    hears(edge, word(edge, terms=5))
    with pytest.raises(UsageError, match=r"settings of edge1: expected those of the cloud \(--scheme"):
        edge.post.check()
    assert edge.cut is None


def test_an_edge_goes_on_learning_for_the_cut_that_it_has_begun_with_or_not_at_all(
    settings: HierarchicalSettings,
) -> None:
    edge = edge_worker(settings)
    trains(edge)
    hears(edge, word(edge, run=RUN + 1, cut=None))
    edge.post.check()
    hears(edge, word(edge, run=RUN + 1, cut=CUT + 1))
    assert edge.cut == CUT
    with pytest.raises(MdiExitError, match="after layer 3 now, this edge has learned for 2: start the cloud"):
        edge.post.check()


def test_a_gradient_or_a_mean_of_another_form_is_put_aside(settings: HierarchicalSettings) -> None:
    edge = edge_worker(replace(settings, schemes=("split",)))
    part, own = trains(edge), edge.post.incarnation
    edge._features = SHAPE
    edge.flow.sending(0)

    def gradient(shape: tuple[int, ...], seq: int, value: float = 1.0) -> tuple[Lesson, bytes]:
        payload = packed("float32", np.full(shape, value, np.float32), None)
        return Lesson(RUN, own, seq, 0, 30, "gradient", "float32", shape, 0, crc32(payload)), payload

    for shape, value in (((BATCH, 32, 4, 5), 1.0), (SHAPE, float("nan"))):
        with pytest.raises(WireError):
            hears(edge, *gradient(shape, 1, value))
    for seq in (2, 3, 10**9):  # never asked for: not kept
        hears(edge, *gradient(SHAPE, seq))
    assert edge._gradient_of(1) is edge._gradient is None
    hears(edge, *gradient(SHAPE, 1))
    assert edge._gradient_of(1) is not None
    for bad in ({"w": torch.zeros(3)}, {**part.state(), "layers.0.more": torch.zeros(1)}):
        raw = state_bytes(bad)
        with pytest.raises(WireError):
            hears(edge, Weights(RUN, own, 1, 40, 0, 1, 0), raw)
    for number in (1, 2):
        hears(edge, Weights(RUN, own, number, 40, 0, 1, 0), state_bytes(part.state()))
    assert edge._has_mean(2)
    assert not edge._has_mean(3)


def test_no_scheme_but_split_takes_a_gradient(settings: HierarchicalSettings) -> None:
    edge = edge_worker(settings)
    trains(edge)
    payload = packed("float32", np.ones(SHAPE, np.float32), None)
    with pytest.raises(WireError):
        hears(edge, Lesson(RUN, edge.post.incarnation, 0, 0, 30, "gradient", "float32", SHAPE, 0, 0), payload)
    assert edge._gradient is None


@pytest.mark.parametrize(
    "bad",
    [{"count": 3, "shape": (3, *SHAPE[1:])}, {"count": 60_000, "shape": (60_000, *SHAPE[1:])}, {"count": 0},
     {"shape": (BATCH, 32, 4, 5)}, {"what": "raw"}, {"codec": "raw"}],
)  # fmt: skip
def test_a_batch_that_is_not_of_this_run_is_refused_before_it_takes_memory(
    settings: HierarchicalSettings, bad: dict[str, Any]
) -> None:
    cloud = Cloud(settings)
    cloud.gets(cloud.report())
    with pytest.raises(WireError):
        cloud.gets(cloud.lesson(**bad))
    assert cloud.flow.next() is None
    cloud.gets(cloud.lesson())
    assert cloud.flow.next() is not None


def test_images_are_taken_by_the_scheme_that_sends_them_in_their_own_size(settings: HierarchicalSettings) -> None:
    cloud = Cloud(replace(settings, schemes=("cloud",)))
    cloud.gets(cloud.report())
    raw = {"what": "raw", "codec": "raw"}
    with pytest.raises(WireError):
        cloud.gets(cloud.lesson(**raw, shape=(BATCH, 1000, 1000, 3)))
    cloud.gets(cloud.lesson(**raw, shape=(BATCH, 16, 16, 1)))
    assert cloud.flow.next() is not None


def test_no_batch_is_taken_before_the_cut_is_told(settings: HierarchicalSettings) -> None:
    cloud = Cloud(settings, begun=False)
    cloud.gets(cloud.report())
    with pytest.raises(WireError, match="before the cut is told"):
        cloud.gets(cloud.lesson())


def test_features_that_are_no_numbers_do_not_reach_the_weights(settings: HierarchicalSettings) -> None:
    cloud = Cloud(settings)
    x_BCHW = np.full(SHAPE, np.inf, np.float32)
    payload = memoryview(packed("float32", x_BCHW, np.zeros(BATCH, np.int64)))
    with pytest.raises(WireError, match="finite"):
        cloud._learned(0, cloud.lesson(codec="float32"), payload)


def test_the_weight_of_an_edge_has_a_limit(settings: HierarchicalSettings) -> None:
    cloud = Cloud(settings)
    assert decode(encode(cloud.report(samples=MAX_SAMPLES)))
    with pytest.raises(WireError):
        decode(encode(cloud.report(samples=MAX_SAMPLES + 1)))
    with pytest.raises(WireError):
        decode(encode(Weights(1, 1, 1, MAX_SAMPLES + 1, 0, 1, 0)))


def test_batches_on_a_slow_link_say_that_an_edge_is_there(settings: HierarchicalSettings) -> None:
    cloud = Cloud(settings)
    cloud.gets(cloud.report())
    cloud.members.by_name["edge1"].heard_at = before = 0.0
    cloud.gets(cloud.lesson())
    assert cloud.members.by_name["edge1"].heard_at > before
    cloud.members.by_name["edge1"].heard_at = before
    cloud.gets(Weights(RUN, 1, 1, 40, 0, 2, 0), b"half")
    assert cloud.members.by_name["edge1"].heard_at > before


def test_weights_and_gradients_on_a_slow_link_say_that_the_cloud_is_there(settings: HierarchicalSettings) -> None:
    edge = edge_worker(replace(settings, schemes=("split",)))
    trains(edge)
    edge._features, own = SHAPE, edge.post.incarnation
    edge.flow.sending(0)
    edge.flow.connected, edge.flow.heard_at = True, float("-inf")
    hears(edge, Weights(RUN, own + 1, 1, 40, 0, 2, 0), b"half")
    assert not edge.flow.link_is_up(time.monotonic())
    hears(edge, Weights(RUN, own, 1, 40, 0, 2, 0), b"half")
    assert edge.flow.link_is_up(time.monotonic())
    edge.flow.heard_at = float("-inf")
    payload = packed("float32", np.ones(SHAPE, np.float32), None)
    hears(edge, Lesson(RUN, own, 1, 0, 30, "gradient", "float32", SHAPE, 0, crc32(payload)), payload)
    assert edge.flow.link_is_up(time.monotonic())


@pytest.mark.parametrize("scheme", ["split", "cloud", "hierarchical"])
async def test_an_edge_that_can_do_nothing_without_a_cloud_gives_up(
    settings: HierarchicalSettings, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mdi_exit.hierarchical.edge._REPORT_S", 0.01)
    edge = edge_worker(replace(settings, schemes=(scheme,), give_up=0.25))
    said: list[object] = []
    edge.post.send = lambda *_, **__: said.append(0) or False  # type: ignore[method-assign,func-returns-value]
    edge.cut, edge.flow.heard_at = CUT, time.monotonic() - 1.0
    reports = asyncio.create_task(edge._keep_reporting(), name="reports")
    async with asyncio.timeout(60):
        while len(said) < 3:
            await asyncio.sleep(0.01)
    if scheme == "hierarchical":  # it trains on
        edge.post.check()
    else:
        with pytest.raises(MdiExitError, match="no word from cloud for"):
            edge.post.check()
    reports.cancel()
    await asyncio.gather(reports, return_exceptions=True)


def test_two_edges_of_one_name_are_told_apart(settings: HierarchicalSettings) -> None:
    edge = edge_worker(settings)
    hears(edge, word(edge, incarnation=edge.post.incarnation - 1))
    edge.post.check()  # an earlier start of ours, as far as we know
    assert edge._other_since is not None
    hears(edge, word(edge))
    assert edge._other_since is None
    hears(edge, word(edge, incarnation=edge.post.incarnation - 1))
    edge._other_since -= 2 * settings.dead_after
    hears(edge, word(edge, incarnation=edge.post.incarnation - 1))
    with pytest.raises(StartError, match="another edge edge1"):
        edge.post.check()
    first = edge_worker(settings)
    hears(first, word(first, incarnation=first.post.incarnation + 1))
    with pytest.raises(StartError, match="another edge edge1"):
        first.post.check()


def test_an_edge_listens_to_the_newer_of_two_clouds_of_one_name(settings: HierarchicalSettings) -> None:
    edge = edge_worker(settings)
    hears(edge, word(edge, run=9, allowed=4))
    edge.flow.sending(0)
    hears(edge, word(edge, run=8))
    assert (edge.run_number, edge.flow.sent) == (9, 1)
    cloud = Cloud(settings)
    for _ in range(2):
        cloud.gets(cloud.report(run=cloud.post.incarnation + 1))
    assert [line for line in cloud.lines if "was started later" in line] == [
        "edge1 has heard of a cloud of our name that was started later, and listens to that one"
    ]


async def test_split_learning_goes_on_when_the_cloud_was_started_again(settings: HierarchicalSettings) -> None:
    edge = edge_worker(replace(settings, schemes=("split",)))
    trains(edge)

    async def sent(*_: Any) -> bool:
        edge.flow.sending(0)
        asyncio.get_running_loop().call_soon(hears, edge, word(edge, run=RUN + 1))
        return True

    edge._sent_at_last = sent  # type: ignore[method-assign]
    await asyncio.wait_for(edge._split_step(0), 30.0)
    assert edge.run_number == RUN + 1


def test_the_cut_is_not_chosen_without_the_link(settings: HierarchicalSettings) -> None:
    cloud = Cloud(replace(settings, cut=None), begun=False)
    cloud.gets(cloud.report(step_s=(0.1,) * (cloud.study.layer_count - 1)))
    with pytest.raises(UsageError, match="steps and link"):
        cloud._chosen_cut()


@pytest.mark.parametrize("key", ["study", "cut", "finished", "trained", "optimiser"])
def test_a_clouds_checkpoint_of_other_code_is_one_line(settings: HierarchicalSettings, key: str) -> None:
    cloud = Cloud(settings)
    asyncio.run(cloud._save())
    write_checkpoint(cloud.keeping.checkpoint_file, without(cloud.keeping.read(), key))
    again = Cloud(settings, begun=False)
    again.cut = None if key == "cut" else CUT
    with pytest.raises(UsageError, match=rf"^checkpoint .*remove it to start anew\), got one without '{key}'$"):
        takes_up(again)


def takes_up(cloud: Cloud) -> None:
    cloud._go_on()
    asyncio.run(cloud._begin())


def without(saved: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in saved.items() if name != key}


@pytest.mark.parametrize("key", ["study", "step", "missed", "part"])
def test_an_edges_checkpoint_of_other_code_is_one_line(settings: HierarchicalSettings, key: str) -> None:
    edge = edge_worker(settings)
    trains(edge)
    asyncio.run(edge._save())
    write_checkpoint(edge.keeping.checkpoint_file, without(edge.keeping.read(), key))
    with pytest.raises(UsageError, match=rf"^checkpoint .*got one without '{key}'$"):
        edge._restore(CUT)


def test_weights_of_another_form_in_a_checkpoint_are_one_line(settings: HierarchicalSettings) -> None:
    edge = edge_worker(settings)
    trains(edge)
    asyncio.run(edge._save())
    write_checkpoint(edge.keeping.checkpoint_file, {**edge.keeping.read(), "part": {"w": torch.zeros(3)}})
    with pytest.raises(UsageError, match=r"^checkpoint .*weights: expected"):
        edge._restore(CUT)


@pytest.mark.parametrize("other", [{"augment": "shift"}, {"input_shape": (3, 16, 16)}, {"edges": 2}])
def test_a_checkpoint_for_other_settings_is_left_aside(settings: HierarchicalSettings, other: dict[str, Any]) -> None:
    asyncio.run(Cloud(settings)._save())
    assert Cloud(settings, begun=False).keeping.read()
    assert not Cloud(replace(settings, **other), begun=False).keeping.read()


def test_edges_augment_each_by_its_own_chance_and_a_single_one_as_ever(settings: HierarchicalSettings) -> None:
    one = edge_worker(replace(settings, augment="mirror-shift", seed=3)).lessons
    chance = torch.Generator().manual_seed(3 * 1_000_003 + 5)
    expected = one.samples.inputs(one.rows(5), torch.device("cpu"), "mirror-shift", chance)
    assert torch.equal(one.batch(5)[0], expected)
    both = [edge_worker(replace(settings, edges=2, shard=(number, 2), augment="shift")).lessons for number in (1, 2)]
    rng = np.random.default_rng(0)
    for lessons in both:  # the same images in the same order at both: what differs is chance
        images = rng.integers(0, 256, tuple(lessons.samples.images_NHWC.shape[1:])).astype(np.uint8)
        rng = np.random.default_rng(0)
        lessons.samples.images_NHWC[:] = torch.from_numpy(images)
    assert not all(torch.equal(both[0].batch(step)[0], both[1].batch(step)[0]) for step in range(4))


def test_a_cloud_augments_the_images_of_each_edge_by_a_chance_of_its_own(settings: HierarchicalSettings) -> None:
    cloud = Cloud(replace(settings, schemes=("cloud",), edges=2, augment="shift"))
    cloud.part = part = WholePart(cloud.study.network(CUT).network, 0.02)
    seen: list[torch.Tensor] = []
    part.train = lambda x_BCHW, *_: seen.append(x_BCHW) or 0.0  # type: ignore[method-assign]
    images_BHWC = np.random.default_rng(0).integers(0, 256, (BATCH, 16, 16, 1)).astype(np.uint8)
    payload = memoryview(packed("raw", images_BHWC, np.zeros(BATCH, np.int64)))
    for number in (0, 1, 0):
        cloud._learned(number, cloud.lesson(what="raw", codec="raw", shape=images_BHWC.shape), payload)
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], seen[1])


def test_what_the_broker_keeps_is_not_believed(settings: HierarchicalSettings) -> None:
    cloud = Cloud(settings)
    topic, frame = cloud.post.topics.training("cloud", "edge1"), encode(cloud.report())
    cloud.post.on_message(topic, frame, True)
    assert (cloud.post.bad, cloud.members.missing) == (1, 1)
    cloud.post.on_message(topic, frame, False)
    assert (cloud.post.bad, cloud.members.missing) == (1, 0)


def test_a_checkpoint_of_another_cut_is_a_users_mistake(settings: HierarchicalSettings) -> None:
    before = Cloud(settings)
    asyncio.run(before._save())
    again = Cloud(settings, begun=False)
    again._go_on()
    assert again.study_number == before.study_number
    with pytest.raises(UsageError, match="--cut: expected 2, as in"):
        Cloud(replace(settings, cut=3), begun=False)._go_on()
    asyncio.run(before._save(ended=True))
    anew = Cloud(replace(settings, cut=3), begun=False)
    anew._go_on()
    assert anew.cut == 3
