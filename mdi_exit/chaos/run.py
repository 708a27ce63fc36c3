"""One run with one fault: items at a steady rate, the fault in the middle, and what came of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from mdi_exit.chaos.faults import FAULTS, Fault, FaultKind, one_fault
from mdi_exit.chaos.inject import clock_environment, inflicted, small_disk
from mdi_exit.chaos.scene import AGENTS, PROFILE, Scene, Setting
from mdi_exit.chaos.verdict import Verdict, judged, rate_between, recovery_s
from mdi_exit.data.sets import shipped
from mdi_exit.model.artifact import DEFAULT_MODEL, Artifact
from mdi_exit.outcomes import outcomes

__all__ = ["FaultRun", "Reference", "reference", "run_fault"]

_CLEAR_OF_SCORES: Final = 1e-4
_WARM_S: Final = 1.0
_BEGIN: Final = (0.25, 0.4)  # of the run's length
_OVERTIME_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Reference:
    """``labels``: by item, what one process without a network says at ``threshold``, which no score comes near."""

    threshold: float
    labels: Mapping[str, int]


@lru_cache(1)
def reference() -> Reference:
    """Of all shipped images; takes some seconds."""
    artifact = Artifact.open(DEFAULT_MODEL)
    trace = outcomes(artifact, shipped()).trace(artifact.manifest.calibration.measure)
    scores_NS, labels_NS = trace.scores_NS, trace.labels_NS
    threshold = next(
        round(float(one), 6) for one in np.arange(0.9, 0.99, 0.0007) if np.abs(scores_NS - one).min() > _CLEAR_OF_SCORES
    )
    early_NS = scores_NS > threshold
    early_NS[:, -1] = True
    exits_N = early_NS.argmax(axis=1)
    labels_N = labels_NS[np.arange(len(labels_NS)), exits_N].tolist()
    return Reference(threshold, {f"shipped/{number}": label for number, label in enumerate(labels_N)})


@dataclass(frozen=True, slots=True)
class FaultRun:
    """``recovery_s``: None if it was not seen; ``usual_per_s``: results a second before the fault; ``discarded``: second
    results that the source did not record; ``restarts``: of nodes that ended unasked.
    """

    fault: Fault
    seed: int
    verdict: Verdict
    recovery_s: float | None
    usual_per_s: float
    retried: int
    discarded: int
    restarts: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """A raw row."""
        return {
            "fault": str(self.fault.kind),
            "seed": self.seed,
            "target": self.fault.target,
            "at_s": round(self.fault.at_s, 3),
            "lasts_s": round(self.fault.lasts_s, 3),
            **self.verdict.to_json(),
            "recovery_s": None if self.recovery_s is None else round(self.recovery_s, 3),
            "usual_per_s": round(self.usual_per_s, 2),
            "retried": self.retried,
            "discarded": self.discarded,
            "restarts": list(self.restarts),
        }


async def run_fault(
    kind: FaultKind, seed: int, folder: Path, *, seconds: float = 15.0, rate_per_s: float = 25.0
) -> FaultRun:
    """Raises ``MdiExitError`` if the run does not come to an end."""
    known = await asyncio.to_thread(reference)
    fault = one_fault(kind, seed, list(AGENTS), (_BEGIN[0] * seconds, _BEGIN[1] * seconds))
    setting = Setting(
        threshold=known.threshold,
        rate_per_s=rate_per_s,
        items=round(seconds * rate_per_s),
        seed=seed,
        journal=kind in (FaultKind.SOURCE_KILL, FaultKind.DISK_FULL),
        profile=None if kind is FaultKind.CLOCK else PROFILE,  # libfaketime spoils the waiting that stretches compute
        environment=clock_environment(folder) if kind is FaultKind.CLOCK else {},
    )
    async with contextlib.AsyncExitStack() as stack:
        if kind is FaultKind.DISK_FULL:
            stack.enter_context(small_disk(folder / "disk"))
        scene = await stack.enter_async_context(Scene(setting, folder))
        await scene.begin()
        began, ended = await _suffer(scene, fault)
        await scene.finish(seconds + _OVERTIME_S)
        return _told(scene, fault, seed, known, began, ended)


async def _suffer(scene: Scene, fault: Fault) -> tuple[float, float]:
    """When the fault began and ended, on the loop's clock."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(max(scene.begun_at + fault.at_s - loop.time(), 0.0))
    began = loop.time()
    async with inflicted(scene, fault):
        await asyncio.sleep(fault.lasts_s)
    return began, loop.time()


def _told(scene: Scene, fault: Fault, seed: int, known: Reference, began: float, ended: float) -> FaultRun:
    summary, rows = scene.summary(), scene.rows()
    first = scene.begun_at
    usual = rate_between(scene.progress, min(first + _WARM_S, began - _WARM_S), began)
    since = ended if FAULTS[fault.kind].counts_from == "end" else began
    return FaultRun(
        fault,
        seed,
        judged(summary["admitted"], rows, known.labels),
        recovery_s(scene.progress, usual, since, first + scene.setting.length_s),
        usual,
        summary["retried"],
        summary["duplicates"],
        tuple(scene.restarts),
    )
