"""What a driver sends of a task: in the codec of its cut, or as it came."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from mdi_exit.driver import NodeDriver
from mdi_exit.engine import make_engine
from mdi_exit.events import SendTask, Task
from mdi_exit.executor import Encoded, Executor
from mdi_exit.model.artifact import DEFAULT_MODEL, Artifact
from mdi_exit.model.variant import with_codec
from mdi_exit.span import LayerSpan
from mdi_exit.tensors import check_payload, encode_tensor
from mdi_exit.topics import TopicKind, Topics
from mdi_exit.wire import Control, Features, decode
from mdi_exit.worker_config import WorkerConfig
from mdi_exit.worker_state import WorkerState

CUT = 4


class Recorder(NodeDriver):
    """Keeps what it would publish."""

    def publish(self, kind: TopicKind, topic: str, frame: bytes) -> bool:
        self.frames = [*getattr(self, "frames", []), frame]
        return True


def sent(driver: Recorder, payload: object, layer: int) -> tuple[Features, bytes]:
    driver.carry_out(SendTask("b", LayerSpan(2, 9), 1, 0, Task(1, 0, 0, layer, payload, 64)))
    message, body = decode(driver.frames[-1])
    assert isinstance(message, Features)
    return message, bytes(body)


@pytest.fixture
async def driver() -> Recorder:
    worker = WorkerState(WorkerConfig("a", 1, LayerSpan(2, 9)), Random(0))
    made = Recorder(worker, worker, Topics("test"), Executor(make_engine("noop")))
    made.use_model(with_codec(Artifact.open(DEFAULT_MODEL), CUT, "int4+zstd").manifest)
    return made


async def test_what_was_made_here_travels_in_the_codec_of_its_cut(driver: Recorder) -> None:
    assert driver.manifest is not None
    for layer, codec in ((CUT, "int4+zstd"), (CUT + 1, "float32")):
        x = np.random.default_rng(0).standard_normal(driver.manifest.in_shape(layer)).astype(np.float32)
        message, body = sent(driver, x, layer)
        assert (message.codec, message.shape, body) == (codec, x.shape, encode_tensor(codec, x))


async def test_what_passes_through_keeps_its_bytes(driver: Recorder) -> None:
    assert driver.manifest is not None
    shape = driver.manifest.in_shape(CUT)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    for codec in ("float16", "int8+zstd"):
        raw = memoryview(encode_tensor(codec, x))
        message, body = sent(driver, Encoded(codec, shape, raw, check_payload(codec, shape, raw)), CUT)
        assert (message.codec, message.shape, body) == (codec, shape, raw)


async def test_the_control_message_names_the_codec_of_the_deployment(driver: Recorder) -> None:
    driver.cuts.deploy(Control(1, 1, "source", 0, "ab" * 16, 0.8, codec="int8").codec)
    assert [driver.cuts.codec(layer) for layer in (CUT, CUT + 1)] == ["int4+zstd", "int8"]
    assert Control(1, 1, "source", 0, "ab" * 16, 0.8).codec == ""  # of an older source
