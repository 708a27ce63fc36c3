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

from mdi_exit.errors import MdiExitError, StartError, UsageError, WireError
from mdi_exit.hierarchical.config import HierarchicalSettings
from mdi_exit.hierarchical.flow import EdgeFlow, Grant, Offer
from mdi_exit.hierarchical.keeping import Keeping
from mdi_exit.hierarchical.lessons import RAW, packed, unpacked
from mdi_exit.hierarchical.parts import (
    EdgePart,
    LatestLosses,
    Part,
    State,
    WholePart,
    most_bytes,
    state_bytes,
    state_like,
)
from mdi_exit.hierarchical.post import Pieces, Post
from mdi_exit.hierarchical.study import Study
from mdi_exit.hierarchical.timing import edge_step_s
from mdi_exit.wire import CloudReport, EdgeReport, Lesson, Message, Weights, crc32, encode

__all__ = ["EdgeWorker", "train_whole"]

_REPORT_S: Final = 1.0
_TRIAL_BYTES: Final = (1024, 64 * 1024)
_TRIAL_S: Final = 60.0
_FASTEST: Final = 1e10
_WAITING_S: Final = 10.0  # between lines that say for whom
_PATIENCE: Final = 2  # times the silence after which an earlier start of ours counts as gone

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
        """Inputs, augmented by chance of the step and the shard, and labels."""
        rows_B = self.rows(step)
        chance = self.study.chance(step, self.study.settings.shard[0] - 1)
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
    work, losses = _Work(settings.slow_edge), LatestLosses()
    begin, tenth = time.monotonic(), max(lessons.steps // 10, 1)
    log.info("training begins: %d steps, all layers", lessons.steps)
    for step in range(lessons.steps):

        def once(step: int = step) -> float:
            return part.train(*lessons.batch(step), step / lessons.steps)

        losses.append(work(once))
        if (step + 1) % tenth == 0:
            log.info("step %d of %d", step + 1, lessons.steps)
    seconds = time.monotonic() - begin
    figures = {
        "scheme": "edge", "cut": cut, "steps": lessons.steps, "seconds": seconds, "busy_s": work.busy_s,
        "samples": len(lessons.samples), "loss": losses.mean,
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
        self.run_number, self.cloud_round, self.cloud_mean, self.study_number = 0, 0, 0, 0
        self.cut: int | None = None
        self.state, self.step, self.bytes_sent, self.bytes_per_s = "joining", 0, 0, 0.0
        self.step_s: tuple[float, ...] = ()
        self.missed: list[int] = []
        self.part: EdgePart | None = None
        self._terms = study.terms
        self._features: tuple[int, ...] = ()
        self._gradient: tuple[int, Array] | None = None
        self._mean: tuple[int, State] | None = None
        self._pieces, self._piece_at = Pieces(0), 0.0
        self._other_since: float | None = None
        self._losses = LatestLosses()

    async def run(self) -> None:
        """Until all is learned and handed over, or stopped. Raises ``MdiExitError``."""
        torch.set_num_threads(self.settings.threads)
        async with self.post:
            await self._until(lambda: self.post.connected)
            if self.stop.is_set():
                return
            if self.settings.cut is None:
                self.step_s = await asyncio.to_thread(edge_step_s, self.study, self.lessons.batch, self.work.slow)
            await self._measure_link()
            while self.settings.cut is None and not self.bytes_per_s and not self.stop.is_set():
                log.warning("the link could not be measured, which --cut auto needs: again")
                await self.post.wait(_REPORT_S)
                await self._measure_link()
            reports = asyncio.create_task(self._keep_reporting(), name="reports")
            try:
                await self._cut_is_told()
                if not self.stop.is_set():
                    await self._learn()
            finally:
                reports.cancel()
                await asyncio.gather(reports, return_exceptions=True)

    async def _cut_is_told(self) -> None:
        """Raises ``MdiExitError`` where there is no cloud."""
        while self.cut is None and not self.stop.is_set():
            log.info("waiting for %s", self.settings.cloud)
            await self._until(lambda: self.cut is not None, _WAITING_S)

    async def _learn(self) -> None:
        scheme, cut = self.settings.scheme, self.cut
        if cut is None:
            raise MdiExitError("expected a cut, got none")
        if scheme != "cloud":
            self.part = await asyncio.to_thread(self._new_part, cut)
            self._pieces = Pieces(most_bytes(self.part.state()))
            self._restore(cut)
        step_of = {"hierarchical": self._step, "split": self._split_step, "cloud": self._raw_step}[scheme]
        begin, first, self.state = time.monotonic(), self.step, "training"
        tenth = max(self.lessons.steps // 10, 1)
        log.info("training begins: %d steps, cut after layer %d", self.lessons.steps, cut)
        while self.step < self.lessons.steps and not self.stop.is_set():
            await step_of(self.step)
            self.post.check()
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

    def _new_part(self, cut: int) -> EdgePart:
        self.study.fits(cut)
        return EdgePart(self.study.network(cut).network, cut, self.settings.learning_rate)

    # --- a step

    async def _step(self, step: int) -> None:
        """Train on a batch; send what leaves the cut, if there is a link and as soon as there is a credit."""
        part = self._own_part()

        def trained() -> tuple[Array, float, torch.Tensor]:
            x_BCHW, labels_B = self.lessons.batch(step)
            return *part.train(x_BCHW, labels_B, step / self.lessons.steps), labels_B

        features, loss, labels_B = await asyncio.to_thread(self.work, trained)
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

            def made(step: int = self.missed[0]) -> tuple[Array, torch.Tensor]:
                x_BCHW, labels_B = self.lessons.batch(step)
                return part.features(x_BCHW), labels_B

            features, labels_B = await asyncio.to_thread(self.work, made)
            while (offer := self._offer()) is not Offer.SEND and not self.stop.is_set() and time.monotonic() < end:
                await self.post.wait(_REPORT_S)
            if offer is Offer.SEND and await self._sent(self.step, "features", features, labels_B.numpy()):
                del self.missed[0]
                end = time.monotonic() + self.settings.give_up

    async def _split_step(self, step: int) -> None:
        """Forward, there and back, backward: nothing of it at the same time. Without a link it waits."""
        part = self._own_part()

        def forward() -> tuple[Array, float, torch.Tensor]:
            x_BCHW, labels_B = self.lessons.batch(step)
            return *part.forward(x_BCHW, labels_B), labels_B

        features, loss, labels_B = await asyncio.to_thread(self.work, forward)
        self._losses.append(loss)
        self._features, self._gradient = features.shape, None
        if not await self._sent_at_last(step, "features", features, labels_B.numpy()):
            return
        run, seq = self.run_number, self.flow.sent
        await self._until(
            lambda: self._gradient_of(seq) is not None or self.flow.grant.settled >= seq or self.run_number != run
        )
        if (gradient_BCHW := self._gradient_of(seq)) is not None:
            progress = step / self.lessons.steps
            await asyncio.to_thread(self.work, lambda: part.backward(gradient_BCHW, progress))

    def _gradient_of(self, seq: int) -> Array | None:
        return self._gradient[1] if self._gradient is not None and self._gradient[0] == seq else None

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
        payload = await asyncio.to_thread(self.work, lambda: packed(codec, x_B, labels_B))
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
        """With other edges: our part there, the mean of all back. Without a link, or the others, we go on with our own.

        The part goes again if it did not come to the cloud, or if the mean did not come from there.
        """
        part, quiet_s = self._own_part(), self.settings.dead_after
        end, must_send = time.monotonic() + self.settings.give_up, True
        while time.monotonic() < end and not self.stop.is_set():
            if must_send and not await self._send_part(part, number):
                return
            await self._until(lambda: self._has_mean(number) or self._offer() is Offer.SKIP, quiet_s)
            if self._has_mean(number) or self._offer() is Offer.SKIP:
                break
            is_coming = time.monotonic() - self._piece_at <= quiet_s
            must_send = self.cloud_round < number or (self.cloud_mean >= number and not is_coming)
        if self._mean is not None and self._has_mean(number):
            part.load(self._mean[1])
        self._mean = None

    def _has_mean(self, number: int) -> bool:
        """Of that round; or of a later one, if the others have not waited."""
        return self._mean is not None and self._mean[0] >= number

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
        with self.keeping.taken_up():
            if saved["study"] != self.study_number:
                log.warning("the cloud begins anew, and so do we: %s is left aside", self.keeping.checkpoint_file)
                return
            if saved["cut"] != cut:
                raise UsageError("--cut", f"{saved['cut']}, as in {self.keeping.checkpoint_file}", cut)
            self._own_part().restore(saved)
            self.step, self.missed = int(saved["step"]), [int(step) for step in saved["missed"]]
        log.info("going on from step %d", self.step)

    async def _save(self) -> None:
        if self.part is not None:
            state = {
                "cut": self.cut, "study": self.study_number, "step": self.step, "missed": list(self.missed),
                **self.part.checkpoint(),
            }  # fmt: skip
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
                "loss": self._losses.mean,
            }
        )  # fmt: skip

    # --- messages

    def _receive(self, sender: str, message: Message, payload: memoryview) -> None:
        if sender != self.settings.cloud:
            return
        match message:
            case CloudReport() if message.run >= self.run_number:
                self._heard(message)
            case Lesson(what="gradient") if self._is_ours(message) and message.seq == self.flow.sent:
                self.flow.heard_at = time.monotonic()
                if self.settings.scheme != "split" or message.shape != self._features:
                    raise WireError("gradient", f"expected one of {self._features} or none, got {message.shape}")
                gradient, _ = unpacked(message.codec, message.shape, 0, payload)
                self._gradient = message.seq, gradient.astype(np.float32, copy=False)
            case Weights() if self._is_ours(message) and self.part is not None:
                self._piece_at = self.flow.heard_at = time.monotonic()  # a report may wait behind many pieces
                if (whole := self._pieces.added(message, payload)) is not None:
                    self._mean = message.round, state_like(whole, self.part.state())
            case CloudReport() | Lesson() | Weights():
                pass  # of an earlier start, or of another cloud
            case _:
                raise WireError("message", f"expected one of hierarchical training, got {type(message).__name__}")

    def _is_ours(self, message: Lesson | Weights) -> bool:
        return message.incarnation == self.post.incarnation and message.run == self.run_number

    def _heard(self, report: CloudReport) -> None:
        now = time.monotonic()
        if report.incarnation != self.post.incarnation:
            self._heard_of_another(report.incarnation, now)
            return
        if report.terms != self._terms:
            expected = "those of the cloud (--scheme, --model, --width, --data, --input-shape, --seed, --edges, "
            self.post.fail(
                UsageError(
                    f"settings of {self.post.name}", expected + "--batch-size, --learning-rate)", "others than it has"
                )
            )
            return
        if self.part is not None and report.cut not in (None, self.cut):
            self.post.fail(
                MdiExitError(
                    f"the cloud cuts after layer {report.cut} now, this edge has learned for {self.cut}: start the cloud "
                    f"from its checkpoint, or with --cut {self.cut}"
                )
            )
            return
        if report.run != self.run_number:
            self.run_number, self.cloud_round = report.run, 0
            self.flow.restarted()
        self._other_since = None
        self.cut = self.cut if report.cut is None else report.cut
        self.cloud_round, self.cloud_mean, self.study_number = report.round, report.mean, report.study
        grant = Grant(report.allowed, report.settled, report.trained, report.dropped, report.lost)
        self.flow.granted(grant, self.step, now)

    def _heard_of_another(self, incarnation: int, now: float) -> None:
        """The cloud talks to another start of our name: an earlier one of our own, which is gone soon, or another edge."""
        self._other_since = now if self._other_since is None else self._other_since
        if incarnation > self.post.incarnation or now - self._other_since > _PATIENCE * self.settings.dead_after:
            self.post.fail(StartError(f"there is another edge {self.post.name}: give each its own --name"))

    def _report(self) -> EdgeReport:
        return EdgeReport(
            self.post.incarnation, self.run_number, self.state, len(self.lessons.samples), self.step, self.lessons.steps,
            self.flow.sent, self.bytes_per_s, self.step_s, self._terms,
        )  # fmt: skip

    async def _keep_reporting(self) -> None:
        """And see that there is a cloud, where nothing can be done without one."""
        begin = time.monotonic()
        while True:
            self.post.send(self.settings.cloud, self._report())
            silent_s = time.monotonic() - (begin if self.flow.heard_at is None else self.flow.heard_at)
            needs_cloud = self.cut is None or self.settings.scheme in ("split", "cloud")
            if needs_cloud and silent_s > self.settings.give_up:
                self.post.fail(MdiExitError(f"no word from {self.settings.cloud} for {self.settings.give_up:g} s"))
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
