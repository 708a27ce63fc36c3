"""Executor and device profiles: every batch ends in an event, off the loop, at no less than the stated time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mdi_exit.benchmark.synthetic import write_identity_artifact
from mdi_exit.engine.base import Array, SegmentOutput
from mdi_exit.engine.onnx import OnnxEngine
from mdi_exit.engine.profile import PROFILES, DeviceProfile, parse_profile
from mdi_exit.errors import EngineError, UsageError
from mdi_exit.events import RunSegment, SegmentDone, SegmentFailed, Task
from mdi_exit.executor import Encoded, Executor
from mdi_exit.model.artifact import DEFAULT_MODEL, Artifact
from mdi_exit.model.compose import Composer
from mdi_exit.segments import SegmentKey
from mdi_exit.tensors import CODECS, check_payload, encode_tensor

SHAPE = (1, 4, 4)
BODY, HEAD = SegmentKey(0, 2, False), SegmentKey(2, 3, True)


class Fake:
    """Gives back its input; fails or waits on request."""

    description = "fake"

    def __init__(self) -> None:
        self.loaded: list[SegmentKey] = []
        self.threads: set[str] = set()
        self.error: Exception | None = None
        self.logits_NK: Array | None = None
        self.gate = threading.Event()
        self.gate.set()

    def load(self, key: SegmentKey, graph: bytes) -> None:
        if graph == b"bad":
            raise EngineError("bad graph")
        self.loaded.append(key)

    def run(self, key: SegmentKey, x: Array) -> SegmentOutput:
        self.threads.add(threading.current_thread().name)
        assert self.gate.wait(20)
        if self.error is not None:
            raise self.error
        logits_NK = self.logits_NK if self.logits_NK is not None else np.tile(np.float32([0, 1]), (len(x), 1))
        return SegmentOutput(None if key == HEAD else x, logits_NK if key.head else None)


@pytest.fixture
def engine() -> Fake:
    return Fake()


@pytest.fixture
def executor(engine: Fake) -> Iterator[Executor]:
    made = Executor(engine)
    yield made
    engine.gate.set()
    made.close()


def task(payload: object, number: int = 0) -> Task:
    return Task(1, number, 0, 0, payload, 64)


@pytest.mark.parametrize("codec", CODECS)
async def test_received_and_own_tensors_run_in_one_batch(executor: Executor, codec: str) -> None:
    x = np.linspace(-1, 1, 16, dtype=np.float32).reshape(SHAPE)
    raw = memoryview(encode_tensor(codec, x))
    received = Encoded(codec, SHAPE, raw, check_payload(codec, SHAPE, raw))
    done = await executor.run(RunSegment(7, BODY, (task(x), task(received, 1))))
    assert isinstance(done, SegmentDone)
    assert done.batch == 7
    assert [outcome.label for outcome in done.outcomes] == [None, None]
    for outcome in done.outcomes:
        assert outcome.size_bytes == 64
        np.testing.assert_allclose(outcome.payload, x, atol=0.08 if codec.startswith("int4") else 0.01)


async def test_at_the_end_there_are_labels_and_no_features(executor: Executor, engine: Fake) -> None:
    engine.logits_NK = np.array([[0, 4], [np.nan, 1], [9, 9]], np.float32)
    x = np.zeros(SHAPE, np.float32)
    done = await executor.run(RunSegment(1, HEAD, tuple(task(x, number) for number in range(3))))
    assert isinstance(done, SegmentDone)
    assert [outcome.payload for outcome in done.outcomes] == [None] * 3
    assert done.outcomes[0].label == 1
    assert [outcome.score for outcome in done.outcomes] == pytest.approx([1 / (1 + np.exp(-4)), 0.0, 0.5])


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (None, "expected a tensor"),
        (b"bytes", "expected a tensor"),
        (np.zeros((2, 4, 4), np.float32), "shape"),
        (Encoded("int8", SHAPE, memoryview(b"short"), memoryview(b"short")), "payload-size"),
        (Encoded("pickle", SHAPE, memoryview(b""), memoryview(b"")), "codec"),
    ],
    ids=["none", "bytes", "another shape", "short", "codec"],
)
async def test_a_bad_task_is_an_event_and_the_next_batch_runs(executor: Executor, payload: object, says: str) -> None:
    good = np.zeros(SHAPE, np.float32)
    failed = await executor.run(RunSegment(3, BODY, (task(good), task(payload, 1))))
    assert isinstance(failed, SegmentFailed)
    assert failed.batch == 3
    assert says in failed.reason
    assert isinstance(await executor.run(RunSegment(4, BODY, (task(good),))), SegmentDone)


@pytest.mark.parametrize("error", [EngineError("one\ntwo"), MemoryError(), ValueError("one")])
async def test_an_engine_that_fails_is_an_event_of_one_line(executor: Executor, engine: Fake, error: Exception) -> None:
    engine.error = error
    failed = await executor.run(RunSegment(1, BODY, (task(np.zeros(SHAPE, np.float32)),)))
    assert isinstance(failed, SegmentFailed)
    assert failed.reason == (str(error).splitlines() or ["MemoryError"])[0]


async def test_the_loop_goes_on_while_the_engine_runs(executor: Executor, engine: Fake) -> None:
    engine.gate.clear()
    running = asyncio.create_task(executor.run(RunSegment(1, BODY, (task(np.zeros(SHAPE, np.float32)),))))
    async with asyncio.timeout(20):
        while not engine.threads:
            await asyncio.sleep(0.001)
        assert not running.done()  # and yet we are here
        engine.gate.set()
        assert isinstance(await running, SegmentDone)
    assert len(engine.threads) == 1
    assert threading.current_thread().name not in engine.threads


async def test_loading_measures_each_segment_and_a_bad_one_is_said(
    executor: Executor, engine: Fake, tmp_path: Path
) -> None:
    manifest = write_identity_artifact(tmp_path, SHAPE, 3).manifest
    seconds = await executor.load(manifest, {BODY: b"good", HEAD: b"good"})
    assert engine.loaded == [BODY, HEAD]
    assert set(seconds) == {BODY, HEAD}
    assert min(seconds.values()) > 0
    with pytest.raises(EngineError, match="bad graph"):
        await executor.load(manifest, {BODY: b"bad"})


async def test_a_run_is_stretched_to_what_the_profile_states() -> None:
    artifact, key = Artifact.open(DEFAULT_MODEL), SegmentKey(0, 2, True)
    manifest = artifact.manifest
    profile = parse_profile("jetson-nanox4")
    executor = Executor(OnnxEngine(), profile)
    try:
        seconds = await executor.load(manifest, {key: Composer(artifact).segment(key)})
        assert seconds[key] >= profile.seconds(manifest, key, 1)
        x = np.zeros((1, 28, 28), np.float32)
        done = await executor.run(RunSegment(1, key, (task(x), task(x, 1))))
        assert isinstance(done, SegmentDone)
        assert done.seconds >= profile.seconds(manifest, key, 2)
    finally:
        executor.close()


# --- profiles


def test_a_profile_states_layers_head_and_overhead_at_camera_size() -> None:
    manifest = Artifact.open(DEFAULT_MODEL).manifest
    profile = DeviceProfile("board", 1e9, 0.001)
    scale = 224 * 224 / (28 * 28)
    body = sum(layer.macs for layer in manifest.layers[2:4])
    head = next(spec.macs for spec in manifest.exits if spec.layer == 3)
    for batch in (1, 4):
        without = profile.seconds(manifest, SegmentKey(2, 4, False), batch)
        assert without == pytest.approx(batch * body * scale / 1e9 + 2 * 0.001)
        with_head = profile.seconds(manifest, SegmentKey(2, 4, True), batch)
        assert with_head - without == pytest.approx(batch * head * scale / 1e9)


@pytest.mark.parametrize("name", PROFILES)
def test_a_factor_makes_everything_faster_by_as_much(name: str) -> None:
    manifest, key = Artifact.open(DEFAULT_MODEL).manifest, SegmentKey(0, 9, True)
    plain, half = parse_profile(name), parse_profile(f"{name}x0.5")
    assert plain is PROFILES[name]
    assert half.name == f"{name}x0.5"
    assert half.seconds(manifest, key, 3) == pytest.approx(2 * plain.seconds(manifest, key, 3))


@pytest.mark.parametrize(
    "bad",
    [
        "jetson-nanox-1",
        "jetson-nanoxinf",
        "jetson-nanox",
        "jetson-nanox1e9",
        "JETSON-NANO",
        "nano",
        "jetson-nanox0",
        "jetson-nanoxnan",
        "x2",
        "",
    ],
)
def test_factors_that_are_none_are_refused(bad: str) -> None:
    with pytest.raises(UsageError, match="jetson-orin-nano"):
        parse_profile(bad)
