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
from mdi_exit.hierarchical.members import Members
from mdi_exit.hierarchical.parts import CloudPart, EdgePart, LatestLosses, WholePart, mean_of
from mdi_exit.hierarchical.post import Post
from mdi_exit.hierarchical.study import Study
from mdi_exit.hierarchical.timing import cloud_step_s
from mdi_exit.training.samples import Augmentation, Samples
from mdi_exit.wire import CloudReport, EdgeReport, Lesson, Message, Weights, crc32

__all__ = ["CloudWorker"]

_REPORT_S: Final = 1.0
_WAITING_S: Final = 10.0  # until we first say for whom
_MOST_REFUSED: Final = 64  # names of edges that do not fit, each of which we say once

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
        self.members = Members(settings.edges, settings.dead_after)
        self.study_number = self.post.incarnation
        self._terms, self._shapes = study.terms, study.feature_shapes()
        self._saved: dict[str, Any] = {}
        self._save_now = False
        self._refused: set[str] = set()
        self._owed: set[str] = set()
        self._losses = LatestLosses()

    async def run(self) -> None:
        """Until all edges have finished and the artifact is written, or stopped. Raises ``MdiExitError``."""
        torch.set_num_threads(self.settings.threads)
        await asyncio.to_thread(self._go_on)
        async with self.post:
            reports = asyncio.create_task(self._keep_reporting(), name="reports")
            try:
                await self._gather()
                if self.stop.is_set():
                    return
                await self._begin()
                await self._learn()
            finally:
                reports.cancel()
                await asyncio.gather(reports, return_exceptions=True)
        if not self.stop.is_set():
            await asyncio.to_thread(self._finish)
            await self._save(ended=self._all_finished())

    def _go_on(self) -> None:
        """What an earlier start has left, unless it came to its end. Raises ``UsageError`` for another cut."""
        saved = self.keeping.read()
        if not saved or saved.get("ended"):
            return
        with self.keeping.taken_up():
            if self.cut is not None and saved["cut"] != self.cut:
                raise UsageError("--cut", f"{saved['cut']}, as in {self.keeping.checkpoint_file}", self.cut)
            self._saved, self.cut, self.study_number = saved, int(saved["cut"]), int(saved["study"])
            self.members.restore(saved["finished"])
        for name, member in self.members.by_name.items():
            self.flow.joined(name, member.report.incarnation, member.report.samples)

    async def _gather(self) -> None:
        """Until all edges are there. Raises ``MdiExitError`` if some are, and the others do not come."""
        missing, since = self.members.missing, time.monotonic()
        # Edges that had finished may have been started again, all together with us: they need to hear that they have.
        least_s = self.settings.dead_after if self.members.by_name else 0.0
        say_at, pause_s = since + _WAITING_S, _WAITING_S
        while not self.stop.is_set() and (missing or time.monotonic() < since + least_s):
            await self.post.wait(_REPORT_S)
            if self.members.missing != missing:
                missing, since = self.members.missing, time.monotonic()
            if missing and self.members.by_name and time.monotonic() - since > self.settings.give_up:
                raise MdiExitError(f"{missing} more edge(s) did not come within {self.settings.give_up:g} s")
            if missing and time.monotonic() >= say_at:
                self.say(f"waiting for {missing} more edge(s)")
                pause_s *= 2
                say_at = time.monotonic() + pause_s

    async def _begin(self) -> None:
        cut = self.cut = await asyncio.to_thread(self._chosen_cut)
        await asyncio.to_thread(self.study.fits, cut)
        network = (await asyncio.to_thread(self.study.network, cut)).network
        peak = self.settings.learning_rate
        part = WholePart(network, peak) if self.settings.scheme == "cloud" else CloudPart(network, cut, peak)
        if self._saved:
            with self.keeping.taken_up():
                part.restore(self._saved)
                self.trained = int(self._saved["trained"])
            self.say(f"going on after {self.trained} batches")
        if self.settings.scheme != "cloud":
            self.members.form = EdgePart(network, cut, peak).state()
        self.part, self._saved = part, {}
        for name in self.members.by_name:
            self._tell(name)

    def _chosen_cut(self) -> int:
        """As told, as before, or the fastest by the runtime model."""
        if self.cut is not None:
            return self.cut
        reports = [member.report for member in self.members.by_name.values()]
        if any(len(report.step_s) != self.study.layer_count - 1 or not report.bytes_per_s for report in reports):
            raise UsageError(
                "--cut", "auto at all workers or at none", "an edge that has not measured its steps and link"
            )
        edge_s = [max(row) for row in zip(*(report.step_s for report in reports), strict=True)]
        cloud_s = cloud_step_s(self.study)
        rate = min(report.bytes_per_s for report in reports)
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
            if self._save_now or self.keeping.is_time():
                await self._save()
            heard_at = (member.heard_at for member in self.members.by_name.values() if not member.has_finished)
            if time.monotonic() - max((begun, *heard_at)) > self.settings.give_up:
                self.say(f"of edges at work nothing was heard for {self.settings.give_up:g} s")
                break
        await self._save()

    def _all_finished(self) -> bool:
        return self.members.have_finished(time.monotonic())

    async def _take(self, turn: Turn[Batch]) -> None:
        """Learn from one batch; the credit goes back, and in split learning the gradient."""
        lesson = turn.batch[0]
        gradient: NDArray[np.float32] | None = None
        try:
            begin = time.perf_counter()
            number = sorted(self.flow.edges).index(turn.edge)
            loss, gradient = await asyncio.to_thread(self._learned, number, *turn.batch)
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

    def _learned(self, number: int, lesson: Lesson, payload: memoryview) -> tuple[float, NDArray[np.float32] | None]:
        """``number``: of the edge, from 0.

        Raises ``WireError`` for a batch that is not what it says, or has labels that we do not know.
        """
        part, scheme = self.part, self.settings.scheme
        x_B, labels_B = unpacked(lesson.codec, lesson.shape, lesson.count, payload)
        if (labels_B >= len(self.study.parts.test.classes)).any():
            raise WireError("labels", f"expected labels below {len(self.study.parts.test.classes)}, got others")
        progress = min(lesson.place / max(lesson.steps, 1), 1.0)
        if isinstance(part, WholePart):
            samples = Samples(torch.from_numpy(np.array(x_B)), torch.from_numpy(labels_B), self.study.spec)
            chance = self.study.chance(lesson.step, number)
            augmentation: Augmentation = self.settings.augment  # type: ignore[assignment] # one of the choices
            x_BCHW = samples.inputs(torch.arange(len(labels_B)), torch.device("cpu"), augmentation, chance)
            return part.train(x_BCHW, samples.labels_N, progress), None
        if part is None:
            raise MdiExitError("expected a part to train, got none")
        return part.train(x_B.astype(np.float32, copy=False), labels_B, progress, gradient=scheme == "split")

    def _check(self, lesson: Lesson) -> None:
        """By its header, before any memory is spent. Raises ``WireError`` unless it is a batch of this scheme and cut."""
        if self.part is None or self.cut is None:
            raise WireError("lesson", f"expected none before the cut is told, got number {lesson.seq}")
        raw, size = self.settings.scheme == "cloud", self.settings.batch_size
        shape = self.study.parts.test.images_NHWC.shape[1:] if raw else self._shapes[self.cut]
        expected = (RAW if raw else "features", raw, (size, *shape), size)
        got = (lesson.what, lesson.codec == RAW, lesson.shape, lesson.count)
        if got != expected:
            raise WireError("lesson", f"expected {expected[0]} {expected[2]}, got {lesson.what} {lesson.shape}")

    # --- weights

    async def _average(self) -> None:
        """A mean for a round that all edges that can be heard have come to; and to those that still wait for one."""
        if self.settings.edges < 2 or self.settings.scheme == "cloud":
            return
        if names := self.members.to_average(time.monotonic()):
            self._owed.update(self.members.average(names))
        for name in sorted(self._owed):
            edge, mean = self.members.by_name[name].report, self.members.mean
            if await self.post.send_weights(
                name, self.post.incarnation, edge.incarnation, mean, edge.samples, self.members.mean_bytes
            ):
                self._owed.discard(name)

    def _finish(self) -> None:
        """The artifact, and the figures."""
        part, cut = self.part, self.cut
        if part is None or cut is None:
            raise MdiExitError("expected a trained part, got none")
        state = dict(part.state())
        if self.settings.scheme != "cloud":
            parts = self.members.last_parts()
            if not parts:
                raise MdiExitError("no edge has handed over its part; the cloud's is in its checkpoint")
            state |= mean_of(parts)
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
            "scheme": self.settings.scheme, "cut": cut, "codec": self.settings.codec, "edges": len(self.members.by_name),
            "images": sum(member.report.samples for member in self.members.by_name.values()),
            "batches_trained": self.trained, "busy_s": round(self.busy_s, 3),
            "batches_dropped": sum(grant.dropped for grant in grants.values()),
            "batches_lost": sum(grant.lost for grant in grants.values()),
            "stalest_steps": self.flow.stalest,
            "learned_by_edge": {name: self.flow.learned(name) for name in self.flow.edges},
            "loss": self._losses.mean,
            "expected_step_s": expected.step_s if expected is not None else None,
            "expected": [
                {"cut": one.cut, "edge_s": one.edge_s, "link_s": one.link_s, "cloud_s": one.cloud_s, "bytes": one.bytes}
                for one in self.times
            ],
        }  # fmt: skip

    async def _save(self, *, ended: bool = False) -> None:
        """``ended``: there is nothing to go on with; the next start begins anew."""
        if self.part is not None:
            self._save_now = False
            state = {
                "cut": self.cut, "trained": self.trained, "study": self.study_number, "ended": ended,
                "finished": self.members.kept(), **self.part.checkpoint(),
            }  # fmt: skip
            await asyncio.to_thread(self.keeping.write, state)

    # --- messages

    def _receive(self, sender: str, message: Message, payload: memoryview) -> None:
        match message:
            case EdgeReport():
                self._heard(sender, message)
            case Lesson() if message.run == self.post.incarnation and self._knows(sender, message):
                self._check(message)
                batch = (message, payload)
                self.flow.arrived(sender, message.incarnation, message.seq, message.step, message.count, batch)
            case Weights() if message.round and self._knows(sender, message):
                if self.members.took(sender, message, payload):
                    if self.members.waits_for_mean(sender):
                        self._owed.add(sender)
                    self._tell(sender)
            case Lesson() | Weights():
                pass  # of an earlier start, of nobody that we know, or to measure the link
            case _:
                raise WireError("message", f"expected one of hierarchical training, got {type(message).__name__}")

    def _knows(self, sender: str, message: Lesson | Weights) -> bool:
        return self.members.heard(sender, message.incarnation, time.monotonic())

    def _heard(self, name: str, report: EdgeReport) -> None:
        if report.terms != self._terms:
            self._refuse(name, report)
            return
        known = self.members.by_name.get(name)
        before = known.report if known is not None else None
        if not self.members.reported(name, report, time.monotonic()):
            return
        self.flow.joined(name, report.incarnation, report.samples)
        if report.run == self.post.incarnation:
            self.flow.heard(name, report.incarnation, report.last_seq, report.step)
        if before is None or before.incarnation != report.incarnation:
            self.say(f"{name} is there with {report.samples} samples")
        elif report.state == "finished" != before.state:
            self._save_now = True
        if report.run > self.post.incarnation and (before is None or before.run != report.run):
            self.say(f"{name} has heard of a cloud of our name that was started later, and listens to that one")

    def _refuse(self, name: str, report: EdgeReport) -> None:
        """It would learn something else, and perhaps from the test samples. It is told, and does not count."""
        self.post.send(name, CloudReport(self.post.incarnation, report.incarnation, None, 0, 0, terms=self._terms))
        if name not in self._refused and len(self._refused) < _MOST_REFUSED:
            self._refused.add(name)
            self.say(f"{name} is not taken: its settings (model, data, seed, ...) are not ours")

    def _tell(self, name: str) -> None:
        member, grant = self.members.by_name[name], self.flow.grant(name)
        cut = self.cut if self.part is not None else None
        self.post.send(
            name,
            CloudReport(
                self.post.incarnation, member.report.incarnation, cut, grant.allowed, grant.settled, grant.trained,
                grant.dropped, grant.lost, member.round, self.members.mean, self._terms, self.study_number,
            ),
        )  # fmt: skip

    async def _keep_reporting(self) -> None:
        while True:
            for name in tuple(self.members.by_name):
                self._tell(name)
            await asyncio.sleep(_REPORT_S)
