"""Alg. 3 and 4 on a clock that does not tick by itself: what is seen in samples of each virtual second."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import count
from random import Random

import pytest

from mdi_exit.events import InputOffered, SetAdmission
from mdi_exit.segments import ModelPlan, SegmentKey
from mdi_exit.simulation import SimulatedNetwork, SimulatedNode
from mdi_exit.source_state import SourceConfig, SourceState
from mdi_exit.span import LayerSpan
from mdi_exit.worker_config import WorkerConfig
from mdi_exit.worker_state import WorkerState

PLAN = ModelPlan("ab" * 16, 9, (1, 3, 5, 6, 8), (3136, 6272, 12544, 3136, 3136, 2048, 2048, 3072, 5120))
LAYER_S = (0.001, 0.01, 0.004, 0.004, 0.004, 0.005, 0.011, 0.035, 0.02)


def seconds(slowness: float):
    def of(key: SegmentKey, batch: int) -> float:
        return batch * slowness * sum(LAYER_S[key.entry : key.stop])

    return of


def exits(item: int, exit_number: int) -> tuple[int, float]:
    hardness = Random(item).random()
    return item % 10, min(1.0, max(0.0, 1.0 - hardness * (1 - 0.2 * exit_number)))


@dataclass(frozen=True, slots=True)
class Second:
    """What is so at the end of a virtual second; the numbers of items are totals."""

    threshold: float
    interval_s: float
    queue: int
    admitted: int
    completed: int
    refused: int


def series(
    seed: int, until: int, *, rates: dict[int, float] | None = None, slowness=(1.0, 2.0), **config
) -> list[Second]:
    rng = Random(seed)
    net = SimulatedNetwork(PLAN, exits, rng)
    numbers = count()
    net.draw = lambda: InputOffered(str(next(numbers)), None, 3136)
    source = SourceState(SourceConfig(run=7, **config), WorkerConfig("source", 1, LayerSpan(0, 9)), rng)
    net.add(SimulatedNode(source, seconds(1.0)))
    for incarnation, slow in enumerate(slowness, start=10):
        worker = WorkerState(WorkerConfig(f"n{incarnation}", incarnation, LayerSpan(0, 9)), rng)
        net.add(SimulatedNode(worker, seconds(slow)))
    seen = []
    for second in range(1, until + 1):
        if rates and second in rates:
            net.at(net.now, "source", SetAdmission(rate_per_s=rates[second]))
        net.run(float(second))
        source.validate()
        counts = source.admitted, source.completed, source.refused
        seen.append(Second(source.threshold, source.interval_s, source.queue, *counts))
    return seen


@cache
def capacity(threshold: float, seconds_long: int = 16) -> float:
    """Items a second that are finished when the source admits as fast as it can."""
    seen = series(0, seconds_long, adapt="none", threshold=threshold)
    return (seen[-1].completed - seen[3].completed) / (seconds_long - 4)


MAX_QUEUE = SourceConfig(run=7).max_queue
# Nothing is admitted at MAX_QUEUE or above, but in the first seconds of an overload agents may offer tasks back.
OFFERED_BACK = WorkerConfig("source", 1, None).window
SEEDS = pytest.mark.parametrize("seed", [0, 1])


@SEEDS
def test_the_threshold_falls_until_the_rate_is_met_and_rises_when_the_load_is_gone(seed: int) -> None:
    calm, load, gone, end = 6, 60.0, 30, 42
    assert capacity(0.9) < load < 0.9 * capacity(0.4), "above what 0.9 can serve, below what the floor can"
    seen = series(
        seed, end, rates={calm + 1: load, gone + 1: 10.0}, rate_per_s=20.0, adapt="threshold", threshold=0.9, floor=0.4
    )
    loaded, after = seen[calm:gone], seen[gone:]
    assert min(s.threshold for s in loaded) < min(s.threshold for s in seen[:calm]) - 0.1
    assert loaded[3].threshold < seen[calm - 1].threshold, "within a few periods"
    assert all(s.queue <= MAX_QUEUE + OFFERED_BACK for s in seen)
    assert all(0.4 <= s.threshold <= 1.0 for s in seen)
    settled = loaded[len(loaded) // 2 :]
    assert all(s.queue <= MAX_QUEUE for s in settled)
    rate = (settled[-1].completed - settled[0].completed) / (len(settled) - 1)
    assert rate == pytest.approx(load, rel=0.1)
    assert settled[-1].refused == settled[0].refused, "once settled, nothing is refused"
    assert after[-1].threshold > settled[-1].threshold + 0.1
    rising = [s.threshold for s in after[3:]]
    assert rising == sorted(rising)


def test_a_rate_that_the_floor_cannot_serve_is_refused_and_not_queued() -> None:
    seen = series(1, 18, rate_per_s=2 * capacity(0.8), adapt="threshold", threshold=0.9, floor=0.8)
    window = WorkerConfig("source", 1, None).window
    assert max(s.queue for s in seen) <= MAX_QUEUE + window, (
        "nothing is admitted above; what agents offer back may come"
    )
    assert all(s.threshold >= 0.8 for s in seen)
    assert seen[-1].threshold == 0.8
    assert seen[-1].refused > seen[8].refused
    assert (seen[-1].completed - seen[8].completed) / 9 == pytest.approx(capacity(0.8), rel=0.15)


@SEEDS
def test_admission_settles_near_capacity_and_nothing_overflows(seed: int) -> None:
    seen = series(seed, 50, adapt="rate", threshold=0.9)
    half = len(seen) // 2
    admitted = (seen[-1].admitted - seen[half - 1].admitted) / (len(seen) - half)
    assert admitted == pytest.approx(capacity(0.9), rel=0.15)
    assert all(s.refused == 0 for s in seen)
    assert all(s.queue <= MAX_QUEUE for s in seen)
    assert {s.threshold for s in seen} == {0.9}
    intervals = [s.interval_s for s in seen[half:]]
    mean = sum(intervals) / len(intervals)
    assert all(mean / 2 < interval < 2 * mean for interval in intervals), "it oscillates within bounds"


def test_the_same_seed_gives_the_same_series_and_another_one_another() -> None:
    first = series(5, 6, adapt="rate", threshold=0.9)
    assert first == series(5, 6, adapt="rate", threshold=0.9)
    assert first != series(6, 6, adapt="rate", threshold=0.9)
