"""The two parts of a cut network, and the whole one, each trained by itself with SGD.

Shapes: B samples, C channels, H×W places, K classes. The learning rate follows the edge's progress (a share of its steps), so
that both parts are at the same point of the schedule whatever the link did meanwhile.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from torch.nn import functional

from mdi_exit.errors import MdiExitError, WireError
from mdi_exit.model.network import MultiExitNetwork
from mdi_exit.training.recipe import Recipe

__all__ = [
    "CloudPart",
    "EdgePart",
    "LatestLosses",
    "Part",
    "WholePart",
    "mean_of",
    "most_bytes",
    "rate_at",
    "state_bytes",
    "state_like",
    "state_of",
]

_WARM_UP: Final = 0.15
_LEAST: Final = 0.02
_EARLY_WEIGHT: Final = 0.5  # of the early exit's loss where one optimiser trains everything, as in mdi-exit train
_LOSSES_KEPT: Final = 50
_ROOM: Final = 1.01

State = dict[str, Tensor]
Array = NDArray[np.float32]


def rate_at(progress: float, peak: float) -> float:
    """Up in a line for the first 15 %, then half a cosine down to 2 % of the peak. ``progress`` in [0, 1]."""
    if progress < _WARM_UP:
        return peak * (_LEAST + (1 - _LEAST) * progress / _WARM_UP)
    down = (1 + math.cos(math.pi * (progress - _WARM_UP) / (1 - _WARM_UP))) / 2
    return peak * (_LEAST + (1 - _LEAST) * down)


class Part:
    """Layers and exits of ``network`` that one optimiser trains; the rest of it is not touched."""

    def __init__(self, network: MultiExitNetwork, layers: range, exits: Sequence[int], peak: float) -> None:
        self.network, self.layers, self.exits, self.peak = network, layers, tuple(exits), peak
        if network.channels_last:
            network.to(memory_format=torch.channels_last)
        self.modules = [*(network.layers[index] for index in layers), *(network.exits[str(at)] for at in self.exits)]
        parameters = [parameter for module in self.modules for parameter in module.parameters()]
        self.optimiser = Recipe(learning_rate=peak).optimiser(parameters)
        self._prefixes = (*(f"layers.{index}." for index in layers), *(f"exits.{at}." for at in self.exits))
        self._set_training(True)

    def _set_training(self, mode: bool) -> None:
        for module in self.modules:
            module.train(mode)

    def state(self) -> State:
        """Weights and statistics of this part, by their names in the network; not copied."""
        return {key: value for key, value in self.network.state_dict().items() if key.startswith(self._prefixes)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Raises ``WireError`` unless it is just this part's state."""
        own = self.state()
        if {key: value.shape for key, value in own.items()} != {key: value.shape for key, value in state.items()}:
            raise WireError("weights", f"expected {len(own)} tensors of layers {self.layers}, got others")
        for key, value in own.items():
            value.copy_(state[key])

    def checkpoint(self) -> dict[str, Any]:
        return {"part": self.state(), "optimiser": self.optimiser.state_dict()}

    def restore(self, saved: Mapping[str, Any]) -> None:
        self.load(saved["part"])
        self.optimiser.load_state_dict(saved["optimiser"])

    def _through(self, x: Tensor) -> Tensor:
        return self.network.segment(x, self.layers.start, self.layers.stop)

    def _step(self, loss: Tensor, progress: float, more: tuple[Tensor, Tensor] | None = None) -> None:
        """``more``: features that another's gradient comes back to, and that gradient.

        Raises ``MdiExitError`` where the loss is no number any more: the weights are as they were before this step.
        """
        if not torch.isfinite(loss):
            raise MdiExitError(f"training runs away, the loss is {loss.item()}: try a smaller --learning-rate")
        for group in self.optimiser.param_groups:
            group["lr"] = rate_at(progress, self.peak)
        self.optimiser.zero_grad(set_to_none=True)
        if more is None:
            loss.backward()  # type: ignore[no-untyped-call]
        else:
            torch.autograd.backward([loss, more[0]], [torch.ones_like(loss), more[1]])
        self.optimiser.step()


class EdgePart(Part):
    """Layers 0 to ``cut`` and the exit there."""

    def __init__(self, network: MultiExitNetwork, cut: int, peak: float) -> None:
        super().__init__(network, range(cut + 1), (cut,), peak)
        self.head = network.exits[str(cut)]
        self._open: tuple[Tensor, Tensor] | None = None

    def train(self, x_BCHW: Tensor, labels_B: Tensor, progress: float) -> tuple[Array, float]:
        """A step by the exit's own loss; the features, B×C×H×W, from before it, detached."""
        features = self._through(x_BCHW)
        loss = functional.cross_entropy(self.head(features), labels_B)
        self._step(loss, progress)
        return _array(features), float(loss.detach())

    def forward(self, x_BCHW: Tensor, labels_B: Tensor) -> tuple[Array, float]:
        """Split learning: the features, and the exit's loss; the step follows with the gradient (``backward``)."""
        features = self._through(x_BCHW)
        loss = functional.cross_entropy(self.head(features), labels_B)
        self._open = features, loss
        return _array(features), float(loss.detach())

    def features(self, x_BCHW: Tensor) -> Array:
        """Without learning: as at inference."""
        self._set_training(False)
        try:
            with torch.no_grad():
                return _array(self._through(x_BCHW))
        finally:
            self._set_training(True)

    def backward(self, gradient_BCHW: Array, progress: float) -> None:
        """Raises ``ValueError`` without a ``forward`` before."""
        if self._open is None:
            raise ValueError("expected a forward pass before, got none")
        (features, loss), self._open = self._open, None
        self._step(_EARLY_WEIGHT * loss, progress, (features, torch.from_numpy(gradient_BCHW).reshape(features.shape)))


class CloudPart(Part):
    """Layers ``cut`` + 1 to the last, and the last exit."""

    def __init__(self, network: MultiExitNetwork, cut: int, peak: float) -> None:
        last = len(network.layers) - 1
        super().__init__(network, range(cut + 1, last + 1), (last,), peak)
        self.head = network.exits[str(last)]

    def train(
        self, x_BCHW: Array, labels_B: NDArray[np.int64], progress: float, *, gradient: bool = False
    ) -> tuple[float, Array | None]:
        """A step by the last exit's loss; ``gradient``: that of the features too, as split learning sends it back."""
        x = torch.from_numpy(np.array(x_BCHW))
        x.requires_grad_(gradient)
        loss = functional.cross_entropy(self.head(self._through(x)), torch.from_numpy(labels_B))
        self._step(loss, progress)
        return float(loss.detach()), _array(x.grad) if x.grad is not None else None


class WholePart(Part):
    """Everything, in one place: the weighted sum of the exits' losses."""

    def __init__(self, network: MultiExitNetwork, peak: float) -> None:
        super().__init__(network, range(len(network.layers)), network.exit_layers, peak)

    def train(self, x_BCHW: Tensor, labels_B: Tensor, progress: float) -> float:
        """A step; the last exit's loss."""
        *early, last = (functional.cross_entropy(one, labels_B) for one in self.network(x_BCHW))
        self._step(last + sum(_EARLY_WEIGHT * one for one in early), progress)
        return float(last.detach())


class LatestLosses(deque[float]):
    """Of the last 50 steps."""

    def __init__(self) -> None:
        super().__init__(maxlen=_LOSSES_KEPT)

    @property
    def mean(self) -> float | None:
        """None: no step was made."""
        return float(np.mean(tuple(self))) if self else None


def _array(x: Tensor) -> Array:
    found: Array = x.detach().float().contiguous().numpy()
    return found


def state_bytes(state: Mapping[str, Tensor]) -> bytes:
    """As safetensors."""
    return save({key: value.detach().clone().contiguous() for key, value in state.items()})


def most_bytes(own: Mapping[str, Tensor]) -> int:
    """That somebody's state like ``own`` may have: names and order may differ a little."""
    return int(_ROOM * len(state_bytes(own)))


def state_of(raw: bytes) -> State:
    """Raises ``WireError``."""
    try:
        return load(raw)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise WireError("weights", f"expected safetensors, got {str(error)[:100]}") from None


def state_like(raw: bytes, own: State) -> State:
    """The state in ``raw``, which may be anybody's. Raises ``WireError`` unless all is there as in ``own``, and finite."""
    found = state_of(raw)
    if {key: (value.shape, value.dtype) for key, value in found.items()} != {
        key: (value.shape, value.dtype) for key, value in own.items()
    }:
        raise WireError("weights", f"expected {len(own)} tensors of names, shapes and dtypes known, got others")
    if not all(bool(torch.isfinite(value).all()) for value in found.values()):
        raise WireError("weights", "expected finite numbers, got others")
    return found


def mean_of(states: Sequence[tuple[State, int]]) -> State:
    """Weighted by samples (federated averaging, arXiv 1602.05629); counters are the first one's.

    Raises ``WireError`` where the states are not alike.
    """
    first, total = states[0][0], sum(weight for _, weight in states)
    shapes = [{key: value.shape for key, value in state.items()} for state, _ in states]
    if any(shape != shapes[0] for shape in shapes):
        raise WireError("weights", "expected parts alike, got others")
    mean = {}
    for key, value in first.items():
        if value.is_floating_point():
            mean[key] = torch.stack([state[key] * (weight / total) for state, weight in states]).sum(0)
        else:
            mean[key] = value
    return mean
