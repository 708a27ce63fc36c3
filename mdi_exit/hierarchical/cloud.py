"""The cloud of hierarchical training: the layers after the cut and the last exit, learned from what the edges send.

Which edge's batch comes first is in ``flow``; every batch counts the same, whoever made it, so that an edge weighs as much as
it has samples. After each epoch, where there are several edges, their parts are averaged, weighted by samples.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from mdi_exit.errors import MdiExitError, UsageError, WireError
from mdi_exit.hierarchical.config import HierarchicalSettings
from mdi_exit.hierarchical.cuts import CutTimes, best_cut, cut_times
from mdi_exit.hierarchical.flow import CloudFlow, Turn
from mdi_exit.hierarchical.keeping import Keeping
from mdi_exit.hierarchical.lessons import RAW, packed, unpacked
from mdi_exit.hierarchical.parts import CloudPart, State, WholePart, mean_of, state_bytes, state_of
from mdi_exit.hierarchical.post import Pieces, Post
from mdi_exit.hierarchical.study import Study
from mdi_exit.hierarchical.timing import cloud_step_s
from mdi_exit.training.samples import Augmentation, Samples
from mdi_exit.wire import CloudReport, EdgeReport, Lesson, Message, Weights, crc32

__all__ = ["CloudWorker"]

_REPORT_S: Final = 1.0
_FASTEST: Final = 1e10
_LOSSES_KEPT: Final = 50

Batch = tuple[Lesson, memoryview]

log = logging.getLogger(__name__)


class CloudWorker:
    """One run of the cloud."""

    def __init__(
        self, settings: HierarchicalSettings, study: Study, stop: asyncio.Event, say: Callable[[str], None] = log.info
    ) -> None:
        self.settings, self.study, self.stop, self.say = settings, study, stop, say
        self.flow: CloudFlow[Batch] = CloudFlow(
            1 if settings.scheme == "split" else settings.window, settings.staleness
        )
        self.post = Post(settings, settings.name, self._receive)
        self.keeping = Keeping(settings, "cloud")
        self.cut: int | None = settings.cut
        self.times: list[CutTimes] = []
        self.part: CloudPart | WholePart | None = None
        self.busy_s, self.trained = 0.0, 0
        self._shapes = study.feature_shapes()
        self._edges: dict[str, EdgeReport] = {}
        self._heard_at: dict[str, float] = {}
        self._pieces: dict[str, Pieces] = {}
        self._parts: dict[str, tuple[int, State, int]] = {}
        self._mean_round = 0
        self._losses: list[float] = []

    async def run(self) -> None:
        """Until all edges have finished and the artifact is written, or stopped. Raises ``MdiExitError``."""
        torch.set_num_threads(self.settings.threads)
        async with self.post:
            reports = asyncio.create_task(self._keep_reporting(), name="reports")
            try:
                while len(self._edges) < self.settings.edges and not self.stop.is_set():
                    await self.post.wait(_REPORT_S)
                if self.stop.is_set():
                    return
                await self._begin()
                await self._learn()
            finally:
                reports.cancel()
                await asyncio.gather(reports, return_exceptions=True)
        if not self.stop.is_set():
            await asyncio.to_thread(self._finish)

    async def _begin(self) -> None:
        cut = self.cut = await asyncio.to_thread(self._chosen_cut)
        self.study.fits(cut)
        network = self.study.network(cut).network
        peak = self.settings.learning_rate
        part = WholePart(network, peak) if self.settings.scheme == "cloud" else CloudPart(network, cut, peak)
        if saved := self.keeping.read():
            part.restore(saved)
            self.trained = int(saved["trained"])
            log.info("going on after %d batches", self.trained)
        self.part = part
        for name in self._edges:
            self._tell(name)

    def _chosen_cut(self) -> int:
        """As told, as before, or the fastest by the runtime model."""
        if self.cut is not None:
            return self.cut
        if saved := self.keeping.read():
            return int(saved["cut"])
        reports = list(self._edges.values())
        if any(len(report.step_s) != self.study.layer_count - 1 for report in reports):
            raise UsageError("--cut", "auto at all workers or at none", "an edge that has not measured its steps")
        edge_s = [max(row) for row in zip(*(report.step_s for report in reports), strict=True)]
        cloud_s = cloud_step_s(self.study)
        rate = min((report.bytes_per_s or _FASTEST for report in reports), default=_FASTEST)
        self.times = cut_times(edge_s, cloud_s, self.study.batch_bytes(), rate, edges=self.settings.edges)
        best = best_cut(self.times)
        self.say(
            f"link {8 * rate / 1e6:.2f} Mbit/s; cut after layer {best.cut} of {self.study.layer_count}: a step of "
            f"{best.step_s:.3f} s expected, the {best.slowest} being slowest"
        )
        return best.cut

    async def _learn(self) -> None:
        """Until all edges have finished, or nothing was heard of any for too long."""
        begun = time.monotonic()
        while not self.stop.is_set():
            turn = self.flow.next()
            if turn is not None:
                await self._take(turn)
            elif self._all_finished():
                break
            else:
                await self.post.wait(_REPORT_S)
            await self._average()
            if self.keeping.is_time():
                await self._save()
            if time.monotonic() - max([begun, *self._heard_at.values()]) > self.settings.give_up:
                self.say(f"no edge was heard of for {self.settings.give_up:g} s")
                break
        await self._save()

    def _all_finished(self) -> bool:
        return all(report.state == "finished" for report in self._edges.values())

    async def _take(self, turn: Turn[Batch]) -> None:
        """Learn from one batch; the credit goes back, and in split learning the gradient."""
        lesson = turn.batch[0]
        gradient: NDArray[np.float32] | None = None
        try:
            begin = time.perf_counter()
            loss, gradient = await asyncio.to_thread(self._learned, *turn.batch)
            self.busy_s += time.perf_counter() - begin
            self._losses.append(loss)
            self.trained += 1
        except WireError as error:
            self.post.bad += 1
            log.warning("a batch of %s is put aside: %s", turn.edge, error)
        if gradient is not None:
            codec = self.settings.gradient_codec
            payload = await asyncio.to_thread(packed, codec, gradient, None)
            answer = Lesson(
                self.post.incarnation, lesson.incarnation, lesson.seq, lesson.step, lesson.steps, "gradient", codec,
                gradient.shape, 0, crc32(payload), lesson.place,
            )  # fmt: skip
            self.post.send(turn.edge, answer, payload)
        self.flow.done(turn)
        self._tell(turn.edge)

    def _learned(self, lesson: Lesson, payload: memoryview) -> tuple[float, NDArray[np.float32] | None]:
        """Raises ``WireError`` for a batch that is not what this scheme and this cut want."""
        part, scheme = self.part, self.settings.scheme
        x_B, labels_B = unpacked(lesson.codec, lesson.shape, lesson.count, payload)
        if (labels_B >= len(self.study.parts.test.classes)).any():
            raise WireError("labels", f"expected labels below {len(self.study.parts.test.classes)}, got others")
        progress = min(lesson.place / max(lesson.steps, 1), 1.0)
        if isinstance(part, WholePart):
            images_NHWC = torch.from_numpy(np.array(self._checked(lesson, x_B, RAW)))
            samples = Samples(images_NHWC, torch.from_numpy(labels_B), self.study.spec)
            chance = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + lesson.step)
            augmentation: Augmentation = self.settings.augment  # type: ignore[assignment] # one of the choices
            x_BCHW = samples.inputs(torch.arange(len(labels_B)), torch.device("cpu"), augmentation, chance)
            return part.train(x_BCHW, samples.labels_N, progress), None
        if part is None:
            raise MdiExitError("expected a part to train, got none")
        features = self._checked(lesson, x_B, "features")
        return part.train(features.astype(np.float32, copy=False), labels_B, progress, gradient=scheme == "split")

    def _checked(self, lesson: Lesson, x_B: NDArray[Any], what: str) -> NDArray[Any]:
        one = x_B.shape[1:]
        fits = one == self._shapes[self.cut or 0] if what == "features" else len(one) == 3
        if lesson.what != what or lesson.count != len(x_B) or len(x_B) < 2 or not fits:
            raise WireError(
                "shape", f"expected {what} with labels, got {lesson.what} {x_B.shape}, {lesson.count} labels"
            )
        return x_B

    # --- weights

    async def _average(self) -> None:
        """A mean for a round that all edges that can be heard have come to."""
        if self.settings.edges < 2 or self.settings.scheme == "cloud":
            return
        alive = [name for name, report in self._edges.items() if report.state != "finished" and self._is_alive(name)]
        rounds = [self._parts[name][0] for name in alive if name in self._parts]
        if len(rounds) < len(alive) or not rounds or min(rounds) <= self._mean_round:
            return
        self._mean_round = min(rounds)
        mean = mean_of([(state, samples) for _, state, samples in self._parts.values()])
        raw = state_bytes(mean)
        for name in alive:
            if self._parts[name][0] == self._mean_round:
                edge = self._edges[name]
                await self.post.send_weights(
                    name, self.post.incarnation, edge.incarnation, self._mean_round, edge.samples, raw
                )

    def _is_alive(self, name: str) -> bool:
        return time.monotonic() - self._heard_at[name] <= self.settings.dead_after

    def _finish(self) -> None:
        """The artifact, and the figures."""
        part, cut = self.part, self.cut
        if part is None or cut is None:
            raise MdiExitError("expected a trained part, got none")
        state = dict(part.state())
        if self.settings.scheme != "cloud":
            if not self._parts:
                raise MdiExitError("no edge has handed over its part; the cloud's is in its checkpoint")
            state |= mean_of([(own, samples) for _, own, samples in self._parts.values()])
        figures = self._figures(cut)
        training = {"method": f"hierarchical training, scheme {self.settings.scheme}", **figures}
        artifact = self.study.finished(cut, state, training)
        accuracies = artifact.manifest.training["accuracy_by_exit"]
        self.keeping.write_figures({**figures, "accuracy_by_exit": accuracies})
        shares = " ".join(f"{100 * share:.2f}" for share in accuracies)
        self.say(f"{artifact.folder}: test accuracy by exit {shares} %")

    def _figures(self, cut: int) -> dict[str, Any]:
        expected = next((time for time in self.times if time.cut == cut), None)
        grants = {name: self.flow.grant(name) for name in self.flow.edges}
        return {
            "scheme": self.settings.scheme, "cut": cut, "codec": self.settings.codec, "edges": len(self._edges),
            "images": sum(report.samples for report in self._edges.values()),
            "batches_trained": self.trained, "busy_s": round(self.busy_s, 3),
            "batches_dropped": sum(grant.dropped for grant in grants.values()),
            "batches_lost": sum(grant.lost for grant in grants.values()),
            "stalest_steps": self.flow.stalest,
            "learned_by_edge": {name: self.flow.learned(name) for name in self.flow.edges},
            "loss": float(np.mean(self._losses[-_LOSSES_KEPT:])) if self._losses else None,
            "expected_step_s": expected.step_s if expected is not None else None,
            "expected": [
                {"cut": one.cut, "edge_s": one.edge_s, "link_s": one.link_s, "cloud_s": one.cloud_s, "bytes": one.bytes}
                for one in self.times
            ],
        }  # fmt: skip

    async def _save(self) -> None:
        if self.part is not None:
            state = {"cut": self.cut, "trained": self.trained, **self.part.checkpoint()}
            await asyncio.to_thread(self.keeping.write, state)

    # --- messages

    def _receive(self, sender: str, message: Message, payload: memoryview) -> None:
        match message:
            case EdgeReport():
                self._heard(sender, message)
            case Lesson() if message.run == self.post.incarnation and sender in self._edges:
                batch = (message, payload)
                self.flow.arrived(sender, message.incarnation, message.seq, message.step, message.count, batch)
            case Weights() if message.round and sender in self._edges:
                whole = self._pieces.setdefault(sender, Pieces()).added(message, payload)
                if whole is not None and message.incarnation == self._edges[sender].incarnation:
                    self._parts[sender] = message.round, state_of(whole), max(message.samples, 1)
                    self._tell(sender)
            case Lesson() | Weights():
                pass  # of an earlier start, of nobody that we know, or to measure the link
            case _:
                raise WireError("message", f"expected one of hierarchical training, got {type(message).__name__}")

    def _heard(self, name: str, report: EdgeReport) -> None:
        known = self._edges.get(name)
        if known is None and len(self._edges) >= self.settings.edges:
            raise WireError("edge", f"expected {self.settings.edges} edge(s), got one more: {name}")
        if known is not None and report.incarnation < known.incarnation:
            return
        self._edges[name], self._heard_at[name] = report, time.monotonic()
        self.flow.joined(name, report.incarnation, report.samples)
        if report.run == self.post.incarnation:
            self.flow.heard(name, report.incarnation, report.last_seq, report.step)
        if known is None or known.incarnation != report.incarnation:
            self.say(f"{name} is there with {report.samples} samples")

    def _tell(self, name: str) -> None:
        edge, grant = self._edges[name], self.flow.grant(name)
        cut = self.cut if self.part is not None else None
        received = self._parts[name][0] if name in self._parts else 0
        self.post.send(
            name,
            CloudReport(
                self.post.incarnation, edge.incarnation, cut, grant.allowed, grant.settled, grant.trained, grant.dropped,
                grant.lost, received,
            ),
        )  # fmt: skip

    async def _keep_reporting(self) -> None:
        while True:
            for name in self._edges:
                self._tell(name)
            await asyncio.sleep(_REPORT_S)
