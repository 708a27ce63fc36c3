"""Hierarchical training of a tiny network over a real Mosquitto: what goes over the wire, and what a cut link does."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
import pytest
from guarded import production
from live import Listener, Program, System, run_program
from live import until as live_until
from numpy.typing import NDArray

pytest.importorskip("torch", reason="needs the extra 'torch'")

import torch

from broker.embedded import find_mosquitto
from mdi_exit import values, wire
from mdi_exit.chaos.packets import Trouble
from mdi_exit.chaos.proxy import FaultProxy
from mdi_exit.data import splits
from mdi_exit.errors import MdiExitError, StartError, UsageError
from mdi_exit.hierarchical.cloud import CloudWorker
from mdi_exit.hierarchical.config import HierarchicalSettings
from mdi_exit.hierarchical.edge import EdgeWorker
from mdi_exit.hierarchical.lessons import packed
from mdi_exit.hierarchical.parts import CloudPart, EdgePart, state_bytes
from mdi_exit.hierarchical.post import Post
from mdi_exit.hierarchical.study import Study
from mdi_exit.model.artifact import Artifact
from mdi_exit.model.manifest import InputSpec
from mdi_exit.outcomes import outcomes
from mdi_exit.training.checkpoint import read_checkpoint
from mdi_exit.training.samples import Samples

pytestmark = [pytest.mark.broker, pytest.mark.timeout(300)]

_PIXELS = 16
_DEADLINE_S = 120.0
T = TypeVar("T")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise, brighter in the half that the class names: easy to learn, and every row of pixels tells itself apart."""
    rng = np.random.default_rng(0)
    labels_N = rng.integers(0, 2, 360)
    images_NHW = rng.integers(0, 120, (len(labels_N), _PIXELS, _PIXELS)).astype(np.uint8)
    half = _PIXELS // 2
    images_NHW[labels_N == 0, :half] += 120
    images_NHW[labels_N == 1, half:] += 120
    path = tmp_path_factory.mktemp("data") / "halves.npz"
    np.savez(path, x=images_NHW[:260], y=labels_N[:260], x_test=images_NHW[260:], y_test=labels_N[260:])
    return path


def worker_settings(url: str, out: Path, data: Path, role: str, **more: Any) -> HierarchicalSettings:
    usual: dict[str, Any] = {
        "name": "edge1" if role == "edge" else "cloud", "model": "small_vgg11", "width": 0.125, "batch_size": 16,
        "epochs": 3, "augment": "none", "cut": 2, "learning_rate": 0.02,
    }  # fmt: skip
    return HierarchicalSettings(
        broker=values.brokers(url), deployment="test", out=out, data=f"npz:{data}", role=role, **{**usual, **more}
    )


async def until(there: Callable[[], bool]) -> None:
    async with asyncio.timeout(_DEADLINE_S):
        while not there():
            await asyncio.sleep(0.01)


class Both:
    """Edges and a cloud in this process."""

    def __init__(self, url: str, out: Path, data: Path, edge_url: str = "", **more: Any) -> None:
        count = more.get("edges", 1)
        self.stop = asyncio.Event()
        cloud = worker_settings(url, out, data, "cloud", **more)
        self.study = Study(cloud)
        self.cloud = CloudWorker(cloud, self.study, self.stop)
        self.edges = []
        for number in range(1, count + 1):
            name, shard = f"edge{number}", (number, count)
            one = worker_settings(edge_url or url, out, data, "edge", **{"name": name, "shard": shard, **more})
            self.edges.append(EdgeWorker(one, Study(one), self.stop))

    async def run(self) -> Artifact:
        async with asyncio.timeout(_DEADLINE_S), asyncio.TaskGroup() as group:
            for worker in (self.cloud, *self.edges):
                group.create_task(worker.run(), name="worker")
        return Artifact.open(self.cloud.settings.out)


def lessons(listener: Listener) -> list[tuple[wire.Lesson, bytes]]:
    found = []
    for topic, payload, _ in listener.messages:
        if "/training/" in topic:
            message, body = wire.decode(payload)
            if isinstance(message, wire.Lesson):
                found.append((message, bytes(body)))
    return found


def images_in(images_NHWC: NDArray[np.uint8], spec: InputSpec, payloads: Sequence[bytes]) -> int:
    """How many of the images can be found in anything that was said, by two rows of one channel, or of all together.

    Looked for are the values themselves and normalised ones: float32, float16, and int8 in steps of the largest, as a codec
    makes of any batch that has a black pixel in each channel.
    """
    everything = b"\0".join(payloads)
    x_NHWC = (images_NHWC.astype(np.float32) / np.float32(255) - np.float32(spec.mean[0])) / np.float32(spec.std[0])
    step = np.abs((0 - spec.mean[0]) / spec.std[0]) / 127
    in_steps_NHWC = np.rint(x_NHWC / np.float32(step)).astype(np.int8)
    last = (images_NHWC, x_NHWC, x_NHWC.astype(np.float16), in_steps_NHWC)
    forms = (*(form[:, 4:6] for form in last), *(form[:, 4:6, :, 0] for form in last))
    return sum(any(form[index].tobytes() in everything for form in forms) for index in range(len(images_NHWC)))


def images_said(study: Study, listener: Listener) -> int:
    return images_in(study.parts.train.images_NHWC, study.spec, [payload for _, payload, _ in listener.messages])


@pytest.mark.parametrize("codec", ["float32", "float16", "int8"])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_found_in_every_form_in_which_they_could_leave(codec: str, channels: int) -> None:
    images_NHWC = np.random.default_rng(0).integers(0, 240, (48, _PIXELS, _PIXELS, channels)).astype(np.uint8)
    spec = InputSpec(kind="image", shape=(channels, _PIXELS, _PIXELS), mean=(0.5,) * channels, std=(0.25,) * channels)
    samples = Samples(torch.from_numpy(images_NHWC), torch.zeros(48, dtype=torch.int64), spec)
    batch_B = torch.arange(7, 39)
    x_BCHW = samples.inputs(batch_B, torch.device("cpu"), "none", torch.Generator()).contiguous()
    labels_B = np.zeros(32, np.int64)
    assert images_in(images_NHWC, spec, [packed(codec, x_BCHW.numpy(), labels_B)]) == 32
    assert images_in(images_NHWC, spec, [packed("raw", images_NHWC[7:39], labels_B)]) == 32
    assert images_in(images_NHWC, spec, [images_NHWC[7:39].transpose(0, 3, 1, 2).tobytes()]) == 32
    assert images_in(images_NHWC, spec, [packed("float32", np.zeros((32, 4, 8, 8), np.float32), labels_B)]) == 0


async def test_features_and_labels_cross_the_wire_and_neither_images_nor_gradients(
    mosquitto: Any, data: Path, tmp_path: Path
) -> None:
    with Listener(mosquitto.url, "#") as listener:
        both = Both(mosquitto.url, tmp_path / "model", data)
        artifact = await both.run()
        sent = lessons(listener)
        assert len(sent) == both.edges[0].lessons.steps
        assert {(message.what, message.codec) for message, _ in sent} == {("features", "int8")}
        assert {topic for topic in listener.topics() if not topic.startswith("$")} == {
            "mdi/test/training/cloud/edge1",
            "mdi/test/training/edge1/cloud",
        }
        assert {message.shape[1:] for message, _ in sent} == {both.study.feature_shapes()[2]}
        assert images_said(both.study, listener) == 0
        others = [wire.decode(payload) for topic, payload, _ in listener.messages if topic.endswith("/cloud/edge1")]
        weights = [(message.round, bytes(body)) for message, body in others if isinstance(message, wire.Weights)]
        part = both.edges[0].part
        assert part is not None
        own = state_bytes(part.state())
        assert b"".join(body for number, body in weights if number) == own  # once, for the artifact
        assert sum(len(body) for number, body in weights if not number) == 65 * 1024  # to measure the link
        assert not any(body for message, body in others if not isinstance(message, (wire.Lesson, wire.Weights)))
    assert artifact.manifest.plan.exit_layers == (2, 7)
    assert artifact.manifest.exits[1].accuracy is not None
    assert artifact.manifest.exits[1].accuracy > 0.8
    found = outcomes(artifact, splits(f"npz:{data}", seed=0).test).trace("max-probability")
    assert found.score(0.9).accuracy > 0.8
    assert read_checkpoint(both.cloud.keeping.checkpoint_file, both.cloud.keeping.purpose)["trained"] == len(sent)
    edge = both.edges[0]
    assert read_checkpoint(edge.keeping.checkpoint_file, edge.keeping.purpose)["step"] == len(sent)


async def test_the_baseline_that_sends_images_is_seen_to_do_so(mosquitto: Any, data: Path, tmp_path: Path) -> None:
    with Listener(mosquitto.url, "#") as listener:
        both = Both(mosquitto.url, tmp_path / "model", data, schemes=("cloud",), epochs=1)
        await both.run()
        assert {message.what for message, _ in lessons(listener)} == {"raw"}
        assert images_said(both.study, listener) > 200


async def test_split_learning_gets_gradients_back(mosquitto: Any, data: Path, tmp_path: Path) -> None:
    with Listener(mosquitto.url, "#") as listener:
        both = Both(mosquitto.url, tmp_path / "model", data, schemes=("split",), epochs=2)
        artifact = await both.run()
        kinds = [message.what for message, _ in lessons(listener)]
    assert kinds.count("features") == kinds.count("gradient") == both.edges[0].lessons.steps
    assert artifact.manifest.exits[1].accuracy is not None


async def test_two_edges_with_data_of_their_own_end_with_one_first_part(
    mosquitto: Any, data: Path, tmp_path: Path
) -> None:
    both = Both(mosquitto.url, tmp_path / "model", data, edges=2, epochs=4)
    artifact = await both.run()
    first, second = ({image.tobytes() for image in edge.lessons.samples.images_NHWC.numpy()} for edge in both.edges)
    assert first
    assert second
    assert not first & second
    one, other = (edge.part.state() for edge in both.edges if edge.part is not None)
    assert all(torch.equal(value, other[key]) for key, value in one.items())  # the mean after the last epoch
    learned = artifact.manifest.training["learned_by_edge"]
    assert set(learned) == {"edge1", "edge2"}
    assert all(count > 0 for count in learned.values())
    assert artifact.manifest.exits[1].accuracy is not None
    assert artifact.manifest.exits[1].accuracy > 0.7


async def test_the_cut_is_chosen_by_what_was_measured(mosquitto: Any, data: Path, tmp_path: Path) -> None:
    both = Both(mosquitto.url, tmp_path / "model", data, cut=None, epochs=1)
    artifact = await both.run()
    expected = artifact.manifest.training["expected"]
    assert [row["cut"] for row in expected] == list(range(7))
    assert both.edges[0].bytes_per_s > 0
    assert artifact.manifest.plan.exit_layers[0] == both.cloud.cut


class Until:
    """Works as ever, but stands still once ``there`` is so, until it may go on."""

    def __init__(self, there: Callable[[], bool], back: threading.Event) -> None:
        self.there, self.back, self.busy_s = there, back, 0.0

    def __call__(self, call: Callable[[], T]) -> T:
        if self.there():
            self.back.wait(_DEADLINE_S)
        return call()


async def test_a_cut_link_stops_neither_side_for_good(mosquitto: Any, data: Path, tmp_path: Path) -> None:
    back = threading.Event()
    address = values.broker_address(mosquitto.url)
    async with FaultProxy((address.host, address.port)) as proxy:
        both = Both(mosquitto.url, tmp_path / "model", data, edge_url=proxy.url, epochs=8)
        (edge,) = both.edges
        edge.work = Until(lambda: edge.flow.skipped >= 5, back)  # type: ignore[assignment]
        running = asyncio.create_task(both.run(), name="both")
        await until(lambda: both.cloud.trained >= 5 or running.done())
        proxy.trouble("*", Trouble(refuse=True))
        await until(lambda: edge.flow.skipped >= 5 or running.done())
        trained = both.cloud.trained
        proxy.calm("*")
        mended = time.monotonic()
        await until(lambda: (edge.flow.heard_at or 0.0) > mended or running.done())
        back.set()
        artifact = await running
    assert edge.step == edge.lessons.steps
    assert edge.flow.skipped >= 5
    assert edge.flow.first_skipped is not None
    assert edge.missed == []
    assert trained < edge.lessons.steps - edge.settings.window <= both.cloud.trained <= edge.lessons.steps
    assert read_checkpoint(edge.keeping.checkpoint_file, edge.keeping.purpose)["missed"] == []
    again = Both(mosquitto.url, tmp_path / "model", data, epochs=8)
    EdgePart(network := again.study.network(2).network, 2, 0.02).restore(again.edges[0].keeping.read())
    CloudPart(network, 2, 0.02).restore(again.cloud.keeping.read())
    both.cloud.flow.validate()
    assert artifact.manifest.exits[0].accuracy is not None
    assert artifact.manifest.exits[0].accuracy > 0.7
    assert artifact.manifest.exits[1].accuracy is not None
    assert artifact.manifest.exits[1].accuracy > 0.7


async def test_both_sides_go_on_from_their_checkpoints(mosquitto: Any, data: Path, tmp_path: Path) -> None:
    first = Both(mosquitto.url, tmp_path / "model", data, epochs=8)
    (edge,) = first.edges
    running = asyncio.gather(first.cloud.run(), edge.run())
    await until(lambda: first.cloud.trained >= 5 or running.done())
    first.stop.set()
    await running
    assert 0 < edge.step < edge.lessons.steps
    second = Both(mosquitto.url, tmp_path / "model", data, epochs=8)
    artifact = await second.run()
    assert second.edges[0].step == edge.lessons.steps
    assert second.edges[0].flow.sent == edge.lessons.steps - edge.step + len(edge.missed)
    assert second.cloud.trained > first.cloud.trained
    assert artifact.manifest.exits[1].accuracy is not None
    assert artifact.manifest.exits[1].accuracy > 0.7


async def killed(task: asyncio.Task[Any]) -> None:
    """Ended without a word: nothing is saved any more, and no goodbye is said."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("role", ["edge", "cloud"])
async def test_a_worker_that_is_killed_and_started_again_goes_on(
    mosquitto: Any, data: Path, tmp_path: Path, role: str
) -> None:
    both = Both(mosquitto.url, tmp_path / "model", data, epochs=8, dead_after=2.0, checkpoint_every=0.0)
    edge, cloud = both.edges[0], both.cloud
    on = threading.Event()
    edge.work = Until(lambda: edge.step >= 20, on)  # type: ignore[assignment] # that there is something left to do
    tasks = {
        "edge": asyncio.create_task(edge.run(), name="edge"),
        "cloud": asyncio.create_task(cloud.run(), name="cloud"),
    }
    await until(lambda: edge.keeping.read().get("step") == 20 or any(task.done() for task in tasks.values()))
    await until(lambda: cloud.trained >= 10 or any(task.done() for task in tasks.values()))
    await killed(tasks[role])
    saved = (edge if role == "edge" else cloud).keeping.read()
    again = Both(mosquitto.url, tmp_path / "model", data, epochs=8, dead_after=2.0, checkpoint_every=0.0)
    second_edge, second_cloud = (again.edges[0], cloud) if role == "edge" else (edge, again.cloud)
    tasks[role] = asyncio.create_task((second_edge if role == "edge" else second_cloud).run(), name="again")
    on.set()
    async with asyncio.timeout(_DEADLINE_S):
        await asyncio.gather(*tasks.values())
    steps = edge.lessons.steps
    assert second_edge.step == steps
    assert second_edge.missed == []
    if role == "edge":
        assert second_edge.flow.sent == steps - 20 + len(saved["missed"])
    else:
        lost = edge.settings.window  # on the way when it was killed
        assert 1 <= saved["trained"] <= second_cloud.trained - (steps - 20) + lost
        assert second_cloud.study_number == cloud.study_number
    artifact = Artifact.open(tmp_path / "model")
    assert artifact.manifest.exits[1].accuracy is not None
    assert artifact.manifest.exits[1].accuracy > 0.7


async def test_an_edge_that_dies_for_good_holds_up_nobody_and_its_old_part_is_not_in_the_artifact(
    mosquitto: Any, data: Path, tmp_path: Path
) -> None:
    both = Both(mosquitto.url, tmp_path / "model", data, edges=2, epochs=4, dead_after=2.0, give_up=8.0)
    living, dying = both.edges
    an_epoch, back = dying.lessons.an_epoch, threading.Event()
    dying.work = Until(lambda: dying.step >= an_epoch + 2, back)  # type: ignore[assignment] # after its first mean
    cloud = asyncio.create_task(both.cloud.run(), name="cloud")
    tasks = [asyncio.create_task(edge.run(), name="edge") for edge in both.edges]
    await until(lambda: dying.step >= an_epoch + 2 or any(task.done() for task in (cloud, *tasks)))
    tasks[1].cancel()
    back.set()
    async with asyncio.timeout(_DEADLINE_S):
        await asyncio.gather(*tasks, cloud, return_exceptions=True)
    assert not cloud.exception()
    assert living.step == living.lessons.steps
    assert both.cloud.members.by_name["edge2"].round == 1
    ((state, _),) = both.cloud.members.last_parts()
    assert living.part is not None
    assert all(torch.equal(value, state[key]) for key, value in living.part.state().items())
    assert Artifact.open(tmp_path / "model").manifest.training["learned_by_edge"]["edge2"] > 0


async def test_the_same_again_after_a_run_that_ended_well_trains_anew(
    mosquitto: Any, data: Path, tmp_path: Path
) -> None:
    for _ in range(2):
        both = Both(mosquitto.url, tmp_path / "model", data, epochs=1)
        await both.run()
        assert both.cloud.trained == both.edges[0].flow.sent == both.edges[0].lessons.steps


async def test_a_mean_and_a_part_that_are_lost_are_sent_again(mosquitto: Any, data: Path, tmp_path: Path) -> None:
    both = Both(mosquitto.url, tmp_path / "model", data, edges=2, epochs=1, dead_after=3.0)
    lost: list[tuple[str, int]] = []

    def losing(post: Post) -> None:
        send = post.send_weights

        async def some(to: str, run: int, incarnation: int, number: int, samples: int, raw: bytes) -> bool:
            if (to, number) not in lost:  # the broker has confirmed it, and nobody gets it
                lost.append((to, number))
                return True
            return await send(to, run, incarnation, number, samples, raw)

        post.send_weights = some  # type: ignore[method-assign]

    losing(both.cloud.post)
    losing(both.edges[0].post)
    await both.run()
    assert {to for to, number in lost if number == 1} == {"cloud", "edge1", "edge2"}
    one, other = (edge.part.state() for edge in both.edges if edge.part is not None)
    assert all(torch.equal(value, other[key]) for key, value in one.items())


async def test_a_cloud_that_starts_again_does_not_wait_for_edges_that_have_finished(
    mosquitto: Any, data: Path, tmp_path: Path
) -> None:
    both = Both(mosquitto.url, tmp_path / "model", data, edges=2, epochs=8, dead_after=2.0)
    quick, slow = both.edges
    short = replace(quick.settings, steps=3)
    quick, back = EdgeWorker(short, Study(short), both.stop), threading.Event()
    slow.work = Until(lambda: slow.step >= 5, back)  # type: ignore[assignment]
    cloud = asyncio.create_task(both.cloud.run(), name="cloud")
    other = asyncio.create_task(slow.run(), name="slow")
    await asyncio.wait_for(quick.run(), _DEADLINE_S)
    await until(lambda: bool(both.cloud.keeping.read().get("finished")) or cloud.done())
    cloud.cancel()
    await asyncio.gather(cloud, return_exceptions=True)
    lines: list[str] = []
    again = CloudWorker(both.cloud.settings, both.study, both.stop, lines.append)
    back.set()
    async with asyncio.timeout(_DEADLINE_S):
        await asyncio.gather(again.run(), other)
    assert "edge1 is there" not in " ".join(lines)
    assert again.trained > 0
    assert set(Artifact.open(tmp_path / "model").manifest.training["learned_by_edge"]) == {"edge1", "edge2"}


async def test_a_cloud_says_for_whom_it_waits_and_gives_up(
    mosquitto: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mdi_exit.hierarchical.cloud._WAITING_S", 0.5)
    both = Both(mosquitto.url, tmp_path / "model", data, edges=2, epochs=1, give_up=3.0)
    lines: list[str] = []
    cloud = CloudWorker(both.cloud.settings, both.study, both.stop, lines.append)
    edge = asyncio.create_task(both.edges[0].run(), name="edge")
    with pytest.raises(MdiExitError, match=r"1 more edge\(s\) did not come within 3 s"):
        await asyncio.wait_for(cloud.run(), _DEADLINE_S)
    assert "waiting for 1 more edge(s)" in lines
    with pytest.raises(MdiExitError, match="no word from cloud for 3 s"):
        await asyncio.wait_for(edge, _DEADLINE_S)


async def test_the_second_edge_of_a_name_leaves_and_the_first_learns_on(
    mosquitto: Any, data: Path, tmp_path: Path
) -> None:
    both = Both(mosquitto.url, tmp_path / "model", data, epochs=2, dead_after=4.0)
    back = threading.Event()
    both.edges[0].work = Until(lambda: both.edges[0].step >= 5, back)  # type: ignore[assignment]
    running = asyncio.create_task(both.run(), name="both")
    await until(lambda: both.cloud.trained >= 5 or running.done())
    settings = replace(both.edges[0].settings, out=tmp_path / "other")
    with pytest.raises(StartError, match="another edge edge1"):
        await asyncio.wait_for(EdgeWorker(settings, Study(settings), asyncio.Event()).run(), _DEADLINE_S)
    back.set()
    await running
    assert both.edges[0].step == both.cloud.trained == both.edges[0].lessons.steps


async def test_an_edge_of_another_seed_does_not_learn_from_the_clouds_test_images(
    mosquitto: Any, data: Path, tmp_path: Path
) -> None:
    both = Both(mosquitto.url, tmp_path / "model", data)
    cloud = asyncio.create_task(both.cloud.run(), name="cloud")
    settings = replace(both.edges[0].settings, seed=1)
    with pytest.raises(UsageError, match="those of the cloud"):
        await asyncio.wait_for(EdgeWorker(settings, Study(settings), asyncio.Event()).run(), _DEADLINE_S)
    both.stop.set()
    await asyncio.wait_for(cloud, _DEADLINE_S)
    assert both.cloud.members.missing == 1


async def test_a_link_that_could_not_be_measured_is_measured_again(mosquitto: Any, data: Path, tmp_path: Path) -> None:
    both = Both(mosquitto.url, tmp_path / "model", data, cut=None, epochs=1)
    measure, tries = both.edges[0]._measure_link, [False, True]

    async def second_time() -> None:
        if tries.pop(0):
            await measure()

    both.edges[0]._measure_link = second_time  # type: ignore[method-assign]
    await both.run()
    assert tries == []
    assert both.edges[0].bytes_per_s > 0


async def test_workers_sign_in_by_password_and_by_certificate_and_the_access_list_lets_them_talk(
    data: Path, tmp_path: Path
) -> None:
    if find_mosquitto() is None:
        pytest.skip("needs mosquitto on PATH")
    with production(tmp_path, "edge1,cloud", "eye:observer", "test") as made:
        cloud, edge = made.board("cloud"), made.board("edge1")
        both = Both(made.url, tmp_path / "model", data, edge_url=made.password_url, epochs=1, ca=cloud / "ca.crt")
        both.cloud = CloudWorker(
            replace(both.cloud.settings, cert=cloud / "node.crt", key=cloud / "node.key"), both.study, both.stop
        )
        signed = {"username": "edge1", "password": (edge / "password").read_text().strip()}
        settings = replace(both.edges[0].settings, **signed)
        both.edges = [EdgeWorker(settings, Study(settings), both.stop)]
        artifact = await both.run()
        assert both.cloud.trained == both.edges[0].lessons.steps
        assert artifact.manifest.exits[1].accuracy is not None
        wrong = EdgeWorker(replace(settings, **signed | {"password": "guess"}), Study(settings), asyncio.Event())
        with pytest.raises(StartError, match="wrong password"):
            await wrong.run()


@pytest.mark.slow
def test_processes_that_are_killed_and_started_again_go_on(system: System, data: Path, tmp_path: Path) -> None:
    def worker(role: str, *more: str) -> Program:
        flags = (
            "train-hierarchical", "--role", role, "--broker", system.url, "--deployment", "test", "--data", f"npz:{data}",
            "--model", "small_vgg11", "--width", "0.125", "--batch-size", "16", "--epochs", "40", "--cut", "2",
            "--learning-rate", "0.02", "--checkpoint-every", "10ms", "--dead-after", "2s", "--out", str(tmp_path / role),
        )  # fmt: skip
        return system.program("mdi_exit.cli", role, *flags, *more)

    cloud, edge = worker("cloud"), worker("edge", "--slow-edge", "4")
    edge.until_says("step 56 of 560")
    edge.kill()
    edge = worker("edge", "--slow-edge", "4")
    edge.until_says("going on from step ")
    begun_at = int(edge.log.split("going on from step ")[1].split()[0])
    assert 0 < begun_at < 560
    edge.until_says("step 224 of 560")
    cloud.kill()
    cloud = worker("cloud")
    assert edge.until_ends() == 0, edge.log
    assert cloud.until_ends() == 0, cloud.log
    gone_on = int(cloud.stdout.split("going on after ")[1].split()[0])
    assert 0 < gone_on < 560
    figures = json.loads((tmp_path / "cloud.training" / "cloud.json").read_text())
    lost = 3 * 4  # two kills, each with a window of batches on its way, and what the cloud has not saved
    again = 2 * 56  # at most, since what each checkpoint says is that old
    assert 560 - lost <= figures["batches_trained"] <= 560 + again
    artifact = Artifact.open(tmp_path / "cloud")
    assert artifact.manifest.exits[1].accuracy is not None
    assert artifact.manifest.exits[1].accuracy > 0.7


def test_sigterm_ends_workers_and_links(system: System, data: Path, tmp_path: Path) -> None:
    def left_over() -> set[str]:
        spaces = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=False).stdout if ip else ""
        return {line.split()[0] for line in spaces.splitlines()}

    ip = shutil.which("ip")
    before, out = left_over(), tmp_path / "model"
    program = system.program(
        "mdi_exit.cli", "all", "train-hierarchical", "--data", f"npz:{data}", "--model", "small_vgg11", "--width", "0.125",
        "--batch-size", "16", "--epochs", "1000", "--cut", "2", "--link", "4Mbit", "--out", str(out),
    )  # fmt: skip
    log = tmp_path / "model.training" / "edge1.log"
    live_until(lambda: log.exists() and "training begins" in log.read_text(), lambda: program.log + program.stdout)
    children = psutil.Process(program.process.pid).children(recursive=True)
    assert sum("--role" in child.cmdline() for child in children) == 2
    assert program.stop() == 1
    assert program.log == "mdi-exit train-hierarchical: error: ended by SIGTERM\n"
    assert not [child for child in children if child.is_running()]
    assert left_over() == before


@pytest.mark.slow
def test_the_command_makes_an_artifact_that_agents_run(system: System, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    done = run_program(
        "mdi_exit.cli", "train-hierarchical", "--data", f"npz:{data}", "--model", "small_vgg11", "--width", "0.125",
        "--batch-size", "16", "--epochs", "2", "--cut", "2", "--link", "4Mbit", "--shaping", "relay", "--out", out,
        "--scheme", "all", deadline_s=240.0,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "hierarchical" in done.stdout
    assert (tmp_path / "model-cloud" / "model.json").exists()
    system.agent("far", "3-7")
    source = system.source("--model", str(out), "--layers", "0-2", "--input", "test", "--exit-threshold", "0.6")
    summary = source.until_completed()
    assert summary["errors"] == 0
    assert summary["completed"] > 0
