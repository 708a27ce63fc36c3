"""What a step of either side costs for each cut: measured as the workers do it, with optimiser and codec.

Each worker is timed by itself. Where both share a machine they slow each other, which the times do not know.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Final

import numpy as np
from torch import Tensor

from mdi_exit.hierarchical.lessons import packed, unpacked
from mdi_exit.hierarchical.parts import CloudPart, EdgePart
from mdi_exit.hierarchical.study import Study

__all__ = ["cloud_step_s", "edge_step_s"]

_TIMED_STEPS: Final = 5


def edge_step_s(study: Study, batch: Callable[[int], tuple[Tensor, Tensor]], slow: float) -> tuple[float, ...]:
    """Seconds by cut: a batch is drawn, trained on and encoded; ``slow`` times as long as it takes here."""
    network = study.network(None).network
    found = []
    for cut in range(study.layer_count - 1):
        part = EdgePart(network, cut, study.settings.learning_rate)

        def step(part: EdgePart = part) -> None:
            x_BCHW, labels_B = batch(0)
            features, _ = part.train(x_BCHW, labels_B, 0.0)
            packed(study.settings.codec, features, labels_B.numpy())

        found.append(slow * _usual_s(step))
    return tuple(found)


def cloud_step_s(study: Study) -> tuple[float, ...]:
    """Seconds by cut: a batch of noise is decoded and trained on."""
    network, settings = study.network(None).network, study.settings
    rng, labels_B = np.random.default_rng(0), np.zeros(settings.batch_size, np.int64)
    found = []
    for cut, shape in enumerate(study.feature_shapes()[:-1]):
        part = CloudPart(network, cut, settings.learning_rate)
        features = rng.random((len(labels_B), *shape), np.float32)
        payload = memoryview(packed(settings.codec, features, labels_B))

        def step(part: CloudPart = part, shape: tuple[int, ...] = features.shape, raw: memoryview = payload) -> None:
            x_B, labels = unpacked(settings.codec, shape, len(labels_B), raw)
            part.train(x_B.astype(np.float32, copy=False), labels, 0.0)

        found.append(_usual_s(step))
    return tuple(found)


def _usual_s(step: Callable[[], None]) -> float:
    """The median of several, the first not counted."""
    taken = []
    for _ in range(1 + _TIMED_STEPS):
        begin = time.perf_counter()
        step()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken[1:])
