"""Runs segments in a thread of their own, so that the event loop never blocks; stretches them to a device profile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np

from mdi_exit.confidence import Judgement, State, judge
from mdi_exit.cuts import CutCodecs
from mdi_exit.engine import Engine, SegmentOutput
from mdi_exit.engine.base import Array
from mdi_exit.engine.profile import DeviceProfile
from mdi_exit.errors import EngineError, MdiExitError
from mdi_exit.events import Outcome, RunSegment, SegmentDone, SegmentFailed
from mdi_exit.model.manifest import Manifest
from mdi_exit.padding import stacked, unpadded
from mdi_exit.segments import SegmentKey
from mdi_exit.tensors import decode_tensor, without_compression

__all__ = ["Encoded", "Executor"]

_WARM_RUNS: Final = 3
_BRIEF_S: Final = 0.2e-3


@dataclass(frozen=True, slots=True)
class Encoded:
    """A received tensor, decoded only when it is run. ``plain``: its bytes without compression, which are checked then."""

    codec: str
    shape: tuple[int, ...]
    payload: memoryview
    plain: memoryview

    def array(self) -> Array:
        return decode_tensor(without_compression(self.codec), self.shape, self.plain)


def tensor_of(payload: object) -> Array:
    """The array behind a task's payload."""
    if isinstance(payload, Encoded):
        return payload.array()
    if isinstance(payload, np.ndarray):
        return payload
    raise TypeError(f"expected a tensor, got {type(payload).__name__}")


def _check_output(manifest: Manifest, key: SegmentKey, output: SegmentOutput) -> None:
    """Whether what came out for one sample is what the manifest says. Raises ``EngineError``."""
    if output.features is not None and key.stop < len(manifest.layers):
        expected: tuple[int, ...] = (1, *manifest.stated_shape(key.stop))
        if output.features.shape != expected:
            raise EngineError(f"{key.file}: expected features of shape {expected}, got {output.features.shape}")
    if output.logits_NK is not None:
        shape, classes = output.logits_NK.shape, len(manifest.labels)
        if len(shape) != 2 or shape[0] != 1 or (classes and shape[1] != classes):
            raise EngineError(f"{key.file}: expected logits of {classes or 'some'} classes, got shape {shape}")


class Executor:
    """One engine, one thread. ``profile``: the device to whose stated times each run is stretched by waiting.

    ``cuts``: says how many bytes what comes out would take on the wire.
    """

    def __init__(self, engine: Engine, profile: DeviceProfile | None = None) -> None:
        self.engine = engine
        self.profile = profile
        self.cuts = CutCodecs()
        self._manifest: Manifest | None = None
        self._warm_s: dict[SegmentKey, float] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def load(self, manifest: Manifest, graphs: Mapping[SegmentKey, bytes]) -> dict[SegmentKey, float]:
        """Load segments and run each a few times on zeros; returns seconds of the fastest run at batch 1.

        Raises ``EngineError``.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._load, manifest, dict(graphs))

    def _load(self, manifest: Manifest, graphs: dict[SegmentKey, bytes]) -> dict[SegmentKey, float]:
        self._manifest = manifest
        seconds = {}
        for key, graph in graphs.items():
            self.engine.load(key, graph)
            x = np.zeros((1, *manifest.stated_shape(key.entry)), np.float32)
            measured = []
            for _ in range(_WARM_RUNS):
                begin = time.perf_counter()
                output = self.engine.run(key, x)
                measured.append(time.perf_counter() - begin)
            _check_output(manifest, key, output)
            stated = self.profile.seconds(manifest, key, 1) if self.profile else 0.0
            seconds[key] = max(min(measured), stated)
        self._warm_s |= seconds
        return seconds

    async def unload(self, keys: Collection[SegmentKey]) -> None:
        """Let go of segments; what was handed over before is run to its end."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._unload, tuple(keys))

    def _unload(self, keys: tuple[SegmentKey, ...]) -> None:
        for key in keys:
            self._warm_s.pop(key, None)
            self.engine.unload(key)

    def is_brief(self, command: RunSegment) -> bool:
        """Whether the run is expected to be over sooner than a thread would have taken it up."""
        return self._warm_s.get(command.key, 1.0) * len(command.tasks) < _BRIEF_S

    def run_here(self, command: RunSegment) -> SegmentDone | SegmentFailed:
        """Run one brief batch in the caller's thread."""
        return self._run(command)

    async def run(self, command: RunSegment) -> SegmentDone | SegmentFailed:
        """Run one batch; a failure comes back as an event."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, command)

    def _run(self, command: RunSegment) -> SegmentDone | SegmentFailed:
        begin = time.perf_counter()
        try:
            tensors = [tensor_of(task.payload) for task in command.tasks]
            x = self._together(command.key, tensors)
            output = self.engine.run(command.key, x)
            outcomes = self._outcomes(command, output)
        except (MdiExitError, ValueError, TypeError, ArithmeticError, MemoryError) as error:
            return SegmentFailed(command.batch, (str(error) or type(error).__name__).splitlines()[0])
        if self.profile and self._manifest:
            left_s = self.profile.seconds(self._manifest, command.key, len(x)) - (time.perf_counter() - begin)
            if left_s > 0:
                time.sleep(left_s)
        return SegmentDone(command.batch, time.perf_counter() - begin, outcomes)

    def _outcomes(self, command: RunSegment, output: SegmentOutput) -> tuple[Outcome, ...]:
        """What a batch gave, sample by sample."""
        states = [task.exit_state for task in command.tasks]
        labels: list[int | None] = [None] * len(states)
        scores = [0.0] * len(states)
        if output.logits_NK is not None:
            judged = self._judged(command.key, output.logits_NK, states, output.gate_N1)
            labels, scores, states = [*judged.labels], judged.scores, judged.states
        features = [None] * len(states) if output.features is None else self._separate(command.key, output.features)
        return tuple(
            Outcome(label, score, x, 0 if x is None else self.cuts.size_bytes(command.key.stop, x.shape), state)
            for label, score, x, state in zip(labels, scores, features, states, strict=True)
        )

    def _together(self, key: SegmentKey, tensors: list[Array]) -> Array:
        """One batch; padded where lengths may differ. Raises ``ValueError``."""
        if len(tensors) > 1 and self._varies(key.entry):
            return stacked(tensors)
        return np.stack(tensors) if len(tensors) > 1 else tensors[0][None]

    def _varies(self, cut: int) -> bool:
        return self._manifest is not None and self._manifest.length(cut) is not None

    def _separate(self, key: SegmentKey, features: Array) -> list[Array]:
        """Each sample's own, without what it was padded with."""
        return [unpadded(x) for x in features] if self._varies(key.stop) else [*features]

    def _judged(self, key: SegmentKey, logits_NK: Array, states: list[State], gate_N1: Array | None) -> Judgement:
        exits = self._manifest.exits if self._manifest else ()
        spec = next((spec for spec in exits if spec.layer == key.stop - 1), None)
        if self._manifest is None or spec is None or spec is exits[-1]:  # a last exit's score decides nothing
            temperature = spec.temperature if spec else 1.0
            return judge("max-probability", logits_NK, states=states, exits=1, temperature=temperature)
        return judge(
            self._manifest.calibration.measure,
            logits_NK,
            states=states,
            exits=len(exits),
            temperature=spec.temperature,
            gate_N1=gate_N1,
        )
