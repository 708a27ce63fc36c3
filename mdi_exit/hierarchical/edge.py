"""An edge of hierarchical training: its own images, the first layers and their exit. What leaves it: features and labels.

In the baselines it sends images (``cloud``), or gets gradients back (``split``), or has nobody to talk to (``edge``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from mdi_exit.errors import MdiExitError, UsageError, WireError
from mdi_exit.hierarchical.config import HierarchicalSettings
from mdi_exit.hierarchical.flow import EdgeFlow, Grant, Offer
from mdi_exit.hierarchical.keeping import Keeping
from mdi_exit.hierarchical.lessons import RAW, packed, unpacked
from mdi_exit.hierarchical.parts import EdgePart, Part, State, WholePart, state_bytes, state_of
from mdi_exit.hierarchical.post import Pieces, Post
from mdi_exit.hierarchical.study import Study
from mdi_exit.hierarchical.timing import edge_step_s
from mdi_exit.wire import CloudReport, EdgeReport, Lesson, Message, Weights, crc32, encode

__all__ = ["EdgeWorker", "train_whole"]

_REPORT_S: Final = 1.0
_TRIAL_BYTES: Final = (1024, 64 * 1024)
_TRIAL_S: Final = 60.0
_FASTEST: Final = 1e10
_LOSSES_KEPT: Final = 50

T = TypeVar("T")
Array = NDArray[np.float32]

log = logging.getLogger(__name__)


class _Work:
    """Computing of an edge: in a thread, as slow as wanted, its seconds counted."""

    def __init__(self, slow: float) -> None:
        self.slow, self.busy_s = slow, 0.0

    def __call__(self, call: Callable[[], T]) -> T:
        begin = time.perf_counter()
        result = call()
        took = time.perf_counter() - begin
        if self.slow > 1:
            time.sleep(took * (self.slow - 1))
        self.busy_s += took * self.slow
        return result


class _Lessons:
    """The batches of an edge in the order of its steps: the same again for the same seed, wherever it begins."""

    def __init__(self, study: Study) -> None:
        self.study, self.samples = study, study.own_samples()
        self.size = study.settings.batch_size
        self.an_epoch, self.steps = study.steps(len(self.samples))
        self._epoch, self._order_N = -1, torch.arange(0)

    def rows(self, step: int) -> torch.Tensor:
        epoch, place = divmod(step, self.an_epoch)
        if epoch != self._epoch:
            seed = (self.study.settings.seed * 1_000_003 + epoch) * 64 + self.study.settings.shard[0]
            self._epoch = epoch
            self._order_N = torch.randperm(len(self.samples), generator=torch.Generator().manual_seed(seed))
        return self._order_N[place * self.size : (place + 1) * self.size]

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs, augmented by chance of the step, and labels."""
        rows_B = self.rows(step)
        chance = torch.Generator().manual_seed(self.study.settings.seed * 1_000_003 + step)
        augmentation: Any = self.study.settings.augment
        return self.samples.inputs(rows_B, torch.device("cpu"), augmentation, chance), self.samples.labels_N[rows_B]

    def raw(self, step: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """The images themselves, as they are."""
        rows_B = self.rows(step)
        return self.samples.images_NHWC[rows_B].numpy(), self.samples.labels_N[rows_B].numpy()


def train_whole(settings: HierarchicalSettings, study: Study, say: Callable[[str], None]) -> dict[str, Any]:
    """The baseline without a network: all layers on this edge. The artifact is written; returns the figures."""
    torch.set_num_threads(settings.threads)
    cut = settings.cut if settings.cut is not None else study.layer_count // 2
    lessons, part = _Lessons(study), WholePart(study.network(cut).network, settings.learning_rate)
    work, losses = _Work(settings.slow_edge), []
    begin = time.monotonic()
    for step in range(lessons.steps):

        def once(step: int = step) -> float:
            return part.train(*lessons.batch(step), step / lessons.steps)

        losses.append(work(once))
    seconds = time.monotonic() - begin
    figures = {
        "scheme": "edge", "cut": cut, "steps": lessons.steps, "seconds": seconds, "busy_s": work.busy_s,
        "samples": len(lessons.samples), "loss": float(np.mean(losses[-_LOSSES_KEPT:])),
    }  # fmt: skip
    training = {"method": "hierarchical training: all at the edge", **figures}
    artifact = study.finished(cut, part.state(), training)
    figures["accuracy_by_exit"] = artifact.manifest.training["accuracy_by_exit"]
    Keeping(settings, settings.name).write_figures(figures)
    say(f"{lessons.steps} steps in {seconds:.1f} s")
    return figures


class EdgeWorker:
    """One run of an edge that has a cloud."""

    def __init__(self, settings: HierarchicalSettings, study: Study, stop: asyncio.Event) -> None:
        self.settings, self.study, self.stop = settings, study, stop
        self.lessons = _Lessons(study)
        self.flow = EdgeFlow(settings.dead_after)
        self.post = Post(settings, settings.name, self._receive)
        self.keeping = Keeping(settings, settings.name, shard=list(settings.shard))
        self.work = _Work(settings.slow_edge)
        self.run_number, self.cloud_round = 0, 0
        self.cut: int | None = None
        self.state, self.step, self.bytes_sent, self.bytes_per_s = "joining", 0, 0, 0.0
        self.step_s: tuple[float, ...] = ()
        self.missed: list[int] = []
        self.part: EdgePart | None = None
        self._gradients: dict[int, Array] = {}
        self._means: dict[int, State] = {}
        self._pieces = Pieces()
        self._losses: list[float] = []

    async def run(self) -> None:
        """Until all is learned and handed over, or stopped. Raises ``MdiExitError``."""
        torch.set_num_threads(self.settings.threads)
        async with self.post:
            await self._until(lambda: self.post.connected)
            if self.settings.cut is None:
                self.step_s = await asyncio.to_thread(edge_step_s, self.study, self.lessons.batch, self.work.slow)
            await self._measure_link()
            reports = asyncio.create_task(self._keep_reporting(), name="reports")
            try:
                await self._until(lambda: self.cut is not None)
                if not self.stop.is_set():
                    await self._learn()
            finally:
                reports.cancel()
                await asyncio.gather(reports, return_exceptions=True)

    async def _learn(self) -> None:
        scheme, cut = self.settings.scheme, self.cut
        if cut is None:
            raise MdiExitError("expected a cut, got none")
        if scheme != "cloud":
            self.study.fits(cut)
            self.part = EdgePart(self.study.network(cut).network, cut, self.settings.learning_rate)
            self._restore(cut)
        step_of = {"hierarchical": self._step, "split": self._split_step, "cloud": self._raw_step}[scheme]
        begin, first, self.state = time.monotonic(), self.step, "training"
        tenth = max(self.lessons.steps // 10, 1)
        log.info("training begins: %d steps, cut after layer %d", self.lessons.steps, cut)
        while self.step < self.lessons.steps and not self.stop.is_set():
            await step_of(self.step)
            self.step += 1
            if self.step % tenth == 0:
                log.info("step %d of %d", self.step, self.lessons.steps)
            if self.keeping.is_time():
                await self._save()
            an_epoch = self.lessons.an_epoch
            if self.part is not None and self.settings.edges > 1 and self.step % an_epoch == 0:
                await self._average(self.step // an_epoch)
        learned_s = time.monotonic() - begin
        await self._save()
        if self.missed:
            log.info("%d batches that the cloud has missed are made up for", len(self.missed))
            await self._make_up()
            await self._save()
        if self.stop.is_set():
            return
        await self._until(lambda: not self.flow.open, self.settings.give_up)
        seconds = time.monotonic() - begin
        await self._hand_over()
        self._write_figures(first, learned_s, seconds)

    # --- a step

    async def _step(self, step: int) -> None:
        """Train on a batch; send what leaves the cut, if there is a link and as soon as there is a credit."""
        part = self._own_part()
        x_BCHW, labels_B = self.lessons.batch(step)
        progress = step / self.lessons.steps
        features, loss = await asyncio.to_thread(self.work, lambda: part.train(x_BCHW, labels_B, progress))
        self._losses.append(loss)
        while (offer := self._offer()) is Offer.WAIT and not self.stop.is_set():
            await self.post.wait(_REPORT_S)
        if offer is not Offer.SEND or not await self._sent(step, "features", features, labels_B.numpy()):
            self.flow.skipping(step)
            self.missed.append(step)

    async def _make_up(self) -> None:
        """At the end: what the cloud has missed, as the trained part now sees it. Forward only."""
        part = self._own_part()
        end = time.monotonic() + self.settings.give_up
        while self.missed and not self.stop.is_set() and time.monotonic() < end:
            x_BCHW, labels_B = self.lessons.batch(self.missed[0])
            features = await asyncio.to_thread(self.work, lambda x_BCHW=x_BCHW: part.features(x_BCHW))
            while (offer := self._offer()) is not Offer.SEND and not self.stop.is_set() and time.monotonic() < end:
                await self.post.wait(_REPORT_S)
            if offer is Offer.SEND and await self._sent(self.step, "features", features, labels_B.numpy()):
                del self.missed[0]
                end = time.monotonic() + self.settings.give_up

    async def _split_step(self, step: int) -> None:
        """Forward, there and back, backward: nothing of it at the same time. Without a link it waits."""
        part = self._own_part()
        x_BCHW, labels_B = self.lessons.batch(step)
        features, loss = await asyncio.to_thread(self.work, lambda: part.forward(x_BCHW, labels_B))
        self._losses.append(loss)
        if not await self._sent_at_last(step, "features", features, labels_B.numpy()):
            return
        seq = self.flow.sent
        await self._until(lambda: seq in self._gradients or self.flow.grant.settled >= seq)
        gradient = self._gradients.pop(seq, None)
        self._gradients.clear()
        if gradient is not None:
            progress = step / self.lessons.steps
            await asyncio.to_thread(self.work, lambda: part.backward(gradient, progress))

    async def _raw_step(self, step: int) -> None:
        """What no edge of hierarchical training does: send the images."""
        await self._sent_at_last(step, RAW, *self.lessons.raw(step))

    async def _sent_at_last(
        self, step: int, what: str, x_B: Array | NDArray[np.uint8], labels_B: NDArray[np.int64]
    ) -> bool:
        while not self.stop.is_set():
            if self._offer() is Offer.SEND and await self._sent(step, what, x_B, labels_B):
                return True
            await self.post.wait(_REPORT_S)
        return False

    def _offer(self) -> Offer:
        self.flow.connected = self.post.connected
        return self.flow.offer(time.monotonic())

    async def _sent(self, step: int, what: str, x_B: Array | NDArray[np.uint8], labels_B: NDArray[np.int64]) -> bool:
        codec = RAW if what == RAW else self.settings.codec
        payload = await asyncio.to_thread(packed, codec, x_B, labels_B)
        run, seq = self.run_number, self.flow.sent + 1
        message = Lesson(
            run, self.post.incarnation, seq, step, self.lessons.steps, what, codec, x_B.shape, len(labels_B), crc32(payload),
            self.step - len(self.missed),
        )  # fmt: skip
        if self._offer() is not Offer.SEND or not self.post.send(self.settings.cloud, message, payload):
            return False
        self.flow.sending(step)
        self.bytes_sent += len(payload)
        return True

    def _own_part(self) -> EdgePart:
        if self.part is None:
            raise MdiExitError("expected a part to train, got none")
        return self.part

    # --- weights

    async def _average(self, number: int) -> None:
        """With other edges: our part there, the mean of all back. Without a link, or the others, we go on with our own."""
        part = self._own_part()
        if not await self._send_part(part, number):
            return
        self._means = {at: mean for at, mean in self._means.items() if at >= number}
        await self._until(lambda: number in self._means or self._offer() is Offer.SKIP, self.settings.give_up)
        if (mean := self._means.pop(number, None)) is not None:
            part.load(mean)

    async def _hand_over(self) -> None:
        """Our part to the cloud, for the artifact; then goodbye."""
        number = self.step // self.lessons.an_epoch + 1 + self.step
        end = time.monotonic() + self.settings.give_up
        while self.part is not None and self.cloud_round < number and not self.stop.is_set():
            if time.monotonic() > end:
                raise MdiExitError(f"no word from the cloud for {self.settings.give_up:g} s; our checkpoint is there")
            if await self._send_part(self.part, number):
                await self._until(lambda: self.cloud_round >= number, self.settings.dead_after)
            await self.post.wait(0.1)
        self.state = "finished"
        while time.monotonic() < end and not self.stop.is_set():
            topic = self.post.topics.training(self.settings.cloud, self.post.name)
            if await self.post.transport.publish_confirmed(topic, encode(self._report())):
                return
            await self.post.wait(_REPORT_S)

    async def _send_part(self, part: Part, number: int) -> bool:
        raw, samples = state_bytes(part.state()), len(self.lessons.samples)
        incarnation = self.post.incarnation
        return await self.post.send_weights(self.settings.cloud, self.run_number, incarnation, number, samples, raw)

    # --- what is kept

    def _restore(self, cut: int) -> None:
        saved = self.keeping.read()
        if not saved:
            return
        if saved["cut"] != cut:
            raise UsageError("--cut", f"{saved['cut']}, as in {self.keeping.checkpoint_file}", cut)
        self._own_part().restore(saved)
        self.step, self.missed = int(saved["step"]), [int(step) for step in saved["missed"]]
        log.info("going on from step %d", self.step)

    async def _save(self) -> None:
        if self.part is not None:
            state = {"cut": self.cut, "step": self.step, "missed": list(self.missed), **self.part.checkpoint()}
            await asyncio.to_thread(self.keeping.write, state)

    def _write_figures(self, first: int, learned_s: float, seconds: float) -> None:
        self.keeping.write_figures(
            {
                "name": self.settings.name, "scheme": self.settings.scheme, "cut": self.cut,
                "samples": len(self.lessons.samples), "steps_an_epoch": self.lessons.an_epoch,
                "steps": self.step - first, "seconds": seconds, "own_seconds": learned_s, "busy_s": self.work.busy_s,
                "batches_sent": self.flow.sent, "batches_skipped": self.flow.skipped, "bytes_sent": self.bytes_sent,
                "first_skipped": self.flow.first_skipped, "last_skipped": self.flow.last_skipped, "missed": len(self.missed),
                "longest_open_steps": self.flow.longest_open, "reconnects": self.post.transport.counters.reconnects,
                "link_bytes_per_s": self.bytes_per_s, "slow_edge": self.settings.slow_edge,
                "loss": float(np.mean(self._losses[-_LOSSES_KEPT:])) if self._losses else None,
            }
        )  # fmt: skip

    # --- messages

    def _receive(self, sender: str, message: Message, payload: memoryview) -> None:
        if sender != self.settings.cloud:
            return
        match message:
            case CloudReport() if message.incarnation == self.post.incarnation:
                if message.run != self.run_number:
                    self.run_number, self.cloud_round = message.run, 0
                    self.flow.restarted()
                self.cut = self.cut if message.cut is None else message.cut
                self.cloud_round = message.round
                grant = Grant(message.allowed, message.settled, message.trained, message.dropped, message.lost)
                self.flow.granted(grant, self.step, time.monotonic())
            case Lesson(what="gradient") if message.incarnation == self.post.incarnation:
                gradient, _ = unpacked(message.codec, message.shape, message.count, payload)
                self._gradients[message.seq] = gradient.astype(np.float32, copy=False)
            case Weights() if message.incarnation == self.post.incarnation:
                if (whole := self._pieces.added(message, payload)) is not None:
                    self._means[message.round] = state_of(whole)
            case CloudReport() | Lesson() | Weights():
                pass  # of an earlier start
            case _:
                raise WireError("message", f"expected one of hierarchical training, got {type(message).__name__}")

    def _report(self) -> EdgeReport:
        return EdgeReport(
            self.post.incarnation, self.run_number, self.state, len(self.lessons.samples), self.step, self.lessons.steps,
            self.flow.sent, self.bytes_per_s, self.step_s,
        )  # fmt: skip

    async def _keep_reporting(self) -> None:
        while True:
            self.post.send(self.settings.cloud, self._report())
            await asyncio.sleep(_REPORT_S)

    async def _measure_link(self) -> None:
        """Bytes a second to the broker, by two confirmed messages of unlike size (weights of round 0, which mean nothing)."""
        took = []
        for size in _TRIAL_BYTES:
            message = Weights(0, self.post.incarnation, 0, 0, 0, 1, crc32(raw := os.urandom(size)))
            topic = self.post.topics.training(self.settings.cloud, self.post.name)
            begin = time.monotonic()
            if not await self.post.transport.publish_confirmed(topic, encode(message, raw), timeout_s=_TRIAL_S):
                return
            took.append(time.monotonic() - begin)
        small, large = _TRIAL_BYTES
        self.bytes_per_s = min((large - small) / max(took[1] - took[0], 1e-6), _FASTEST)

    async def _until(self, there: Callable[[], bool], most_s: float = float("inf")) -> None:
        """Until it is so, or we are to stop, or that much time has passed."""
        end = time.monotonic() + most_s
        while not there() and not self.stop.is_set() and (left_s := end - time.monotonic()) > 0:
            with contextlib.suppress(TimeoutError):
                await self.post.wait(min(left_s, _REPORT_S))
