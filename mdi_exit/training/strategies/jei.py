"""JEI-DNN: heads and gates of a frozen backbone, learned in turns (Regol et al., arXiv 2310.09163, ICLR 2024).

Warm-up: heads alone, each until its validation loss no longer falls. Then phases of 200 batches alternate: heads learn
where the gates would let a sample out, gates learn which exit serves a sample best for its cost. SGD 0.01, momentum 0.9,
weight decay 5e-4, a cosine down to 2e-4, batches of 64.

Shapes: B samples, G gates (= early exits), L = G + 1 exits.

Two points that the formulas leave open are settled here. The rescaling factor of the classifier loss carries no gradient:
with one, the product is ΣCE again and the weights are gone. Positive weights are negatives over positives of the
targets themselves on the validation samples.

One point of the paper can be chosen otherwise. Its targets are 1 from the best exit's gate **onward**, so that g_l learns
whether to leave here *or earlier*, and positive weights raise it further; P_l then adds the gates up as if each were the
share that leaves *here*. Where it is seldom in doubt which exit is best, gates are near 0 or 1 and it makes no odds. Where
it often is, Σg passes 1 in the middle of the network, h becomes 1 there, and the last exit is hardly used, however well the
gates have learned. Targets that are 1 **once**, at the best exit alone, without positive weights, make g_l the share that
P_l takes it for.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from mdi_exit.training.phases import Evaluation, Losses, Phase, Taps, Trainee, evaluating, taps_of
from mdi_exit.training.recipe import Recipe

__all__ = [
    "COST_WEIGHT",
    "GATE_TARGETS",
    "LINEAR_EPOCHS",
    "WARM_UP_EPOCHS",
    "AlternatingPhase",
    "GateTargets",
    "WarmUpPhase",
    "best_exits",
    "classifier_loss",
    "gate_targets",
    "jei_recipe",
    "linear_warm_up",
    "positive_weights",
    "shares",
    "sureness",
]

COST_WEIGHT: Final = 0.1
BATCHES_A_TURN: Final = 200
MOST_POSITIVE_WEIGHT: Final = 5.0
PATIENCE_EPOCHS: Final = 2
WARM_UP_EPOCHS: Final = 10
LEARNING_RATE: Final = 0.01
LINEAR_EPOCHS: Final = 40
LINEAR_PATIENCE_EPOCHS: Final = 10
LINEAR_RATE: Final = 0.3

GateTargets = Literal["onward", "once"]
GATE_TARGETS: Final[tuple[GateTargets, ...]] = get_args(GateTargets)


def jei_recipe(epochs: int, learning_rate: float = LEARNING_RATE) -> Recipe:
    """The paper's optimiser."""
    return Recipe(
        epochs=epochs,
        batch_size=64,
        learning_rate=learning_rate,
        least_rate=2e-4,
        momentum=0.9,
        weight_decay=5e-4,
        nesterov=False,
        schedule="cosine",
    )


def shares(g_BG: Tensor) -> Tensor:
    """P_l = max(0, min(g_l, 1 - Σ_{j<l} g_j)): which share of a sample each gate lets out."""
    left_BG = 1 - (g_BG.cumsum(1) - g_BG)
    return torch.minimum(g_BG, left_BG).clamp(min=0)


def sureness(g_BG: Tensor) -> Tensor:
    """h_l = clip(P_l / Π_{j<l}(1 - h_j), 0, 1), 1 where the product is 0: a sample exits at the first h_l ≥ 0.5."""
    found: list[Tensor] = []
    product_B = torch.ones_like(g_BG[:, 0])
    for share_B in shares(g_BG).unbind(1):
        h_B = torch.where(product_B > 0, (share_B / product_B.clamp(min=1e-30)).clamp(0, 1), torch.ones_like(share_B))
        found.append(h_B)
        product_B = product_B * (1 - h_B)
    return torch.stack(found, 1)


def classifier_loss(share_BG: Tensor, losses_BG: Tensor) -> Tensor:
    """Mean over samples of Σ P_l·CE_l, each sample's rescaled by ΣCE_l / ΣP_l·CE_l, which is taken as a constant."""
    weighted_B = (share_BG * losses_BG).sum(1)
    scale_B = losses_BG.sum(1).detach() / weighted_B.detach().clamp(min=1e-12)
    return (weighted_B * scale_B).mean()


def best_exits(losses_BL: Tensor, cost_L: Tensor, cost_weight: float) -> Tensor:
    """l* = argmin_l (CE_l + λ·cost_l), the earlier one of equals."""
    return (losses_BL + cost_weight * cost_L).argmin(1)


def gate_targets(best_B: Tensor, gates: int, targets: GateTargets = "onward") -> Tensor:
    """B×G: 1 from the best exit's gate on, 0 before; or 1 at it, once. None where the last exit is best."""
    gate_G = torch.arange(gates, device=best_B.device)
    return (gate_G >= best_B[:, None] if targets == "onward" else gate_G == best_B[:, None]).float()


def positive_weights(target_NG: Tensor) -> Tensor:
    """G: negatives over positives, at most 5."""
    positives_G = target_NG.sum(0)
    return ((len(target_NG) - positives_G) / positives_G.clamp(min=1e-9)).clamp(max=MOST_POSITIVE_WEIGHT)


def linear_warm_up(trainee: Trainee, epochs: int | None = None) -> WarmUpPhase:
    """For heads that are linear on the features of an encoder that came with its weights, and cost next to nothing.

    Such heads learn little at the paper's rate in the few batches of a small set, the last of them least, since its loss
    counts once and the first one's G times. Here the first head learns at a rate of 0.3, and patience is long, for losses
    waver until the rate falls.
    """
    recipe = jei_recipe(epochs or LINEAR_EPOCHS, LINEAR_RATE / max(len(trainee.heads), 1))
    return WarmUpPhase(trainee, recipe, LINEAR_PATIENCE_EPOCHS)


class WarmUpPhase(Phase):
    """Loss CE_last + Σ (G+1-l)·CE_l with l from 1, of those heads that have not stopped.

    A head whose validation loss has not fallen for ``patience`` epochs stops; each ends with its best weights.
    """

    name: ClassVar = "warm-up"
    frozen: ClassVar = True

    def __init__(self, trainee: Trainee, recipe: Recipe, patience: int = PATIENCE_EPOCHS) -> None:
        super().__init__(trainee, recipe)
        self.patience = patience
        self._best: list[float] = [math.inf] * len(trainee.heads)
        self._since = [0] * len(trainee.heads)
        self._weights: list[dict[str, Tensor]] = [{} for _ in trainee.heads]

    def trained(self) -> Sequence[nn.Module]:
        return self.trainee.heads

    def set_modes(self) -> None:
        super().set_modes()
        for head, since in zip(self.trainee.heads, self._since, strict=True):
            if since >= self.patience:
                head.eval().requires_grad_(False)

    def loss(self, step: int, batch: Tensor | Taps, labels_B: Tensor) -> Losses:
        del step
        logits = self.trainee.head_logits(taps_of(batch))
        by_exit_L = torch.stack([functional.cross_entropy(one_BK, labels_B) for one_BK in logits])
        gates = len(logits) - 1
        learning = [gates - number if since < self.patience else 0 for number, since in enumerate(self._since)]
        return Losses((by_exit_L.new_tensor([*learning, 1]) * by_exit_L).sum(), by_exit_L)

    def epoch_done(self, validation: Evaluation) -> bool:
        losses = validation.losses_LN.mean(1).tolist()
        for number, head in enumerate(self.trainee.heads):
            if self._since[number] >= self.patience:
                continue
            if losses[number] < self._best[number]:
                self._best[number], self._since[number] = losses[number], 0
                self._weights[number] = copy.deepcopy(head.state_dict())
            else:
                self._since[number] += 1
        return all(since >= self.patience for since in self._since)

    def end(self) -> None:
        for head, weights in zip(self.trainee.heads, self._weights, strict=True):
            if weights:
                head.load_state_dict(weights)

    def state(self) -> dict[str, Any]:
        return {"best": list(self._best), "since": list(self._since), "weights": list(self._weights)}

    def restore(self, state: dict[str, Any]) -> None:
        self._best, self._since, self._weights = list(state["best"]), list(state["since"]), list(state["weights"])


class AlternatingPhase(Phase):
    """Heads and gates in turns of 200 batches, heads first.

    ``cost_L``: of a sample that leaves at each exit, as a share of the whole network's. ``cost_weight``: λ. ``targets``: of
    the gates, see the module.
    """

    name: ClassVar = "alternating"
    frozen: ClassVar = True

    def __init__(
        self,
        trainee: Trainee,
        recipe: Recipe,
        cost_L: Sequence[float],
        cost_weight: float = COST_WEIGHT,
        targets: GateTargets = "onward",
    ) -> None:
        super().__init__(trainee, recipe)
        self.cost_L, self.cost_weight, self.targets = torch.tensor(list(cost_L)), cost_weight, targets
        self._positive_weights_G = torch.ones(len(trainee.gates))

    def trained(self) -> Sequence[nn.Module]:
        return [*self.trainee.heads, *self.trainee.gates]

    def gate_batches(self, batches: int) -> int:
        """In how many of the phase's ``batches`` gates have their turn."""
        whole, rest = divmod(batches, 2 * BATCHES_A_TURN)
        return whole * BATCHES_A_TURN + max(rest - BATCHES_A_TURN, 0)

    def begin(self, evaluate: Callable[[], Evaluation]) -> None:
        self._weigh(evaluate())

    def epoch_done(self, validation: Evaluation) -> bool:
        self._weigh(validation)
        return False

    def loss(self, step: int, batch: Tensor | Taps, labels_B: Tensor) -> Losses:
        heads_learn = step // BATCHES_A_TURN % 2 == 0
        return (self._heads if heads_learn else self._gates)(taps_of(batch), labels_B)

    def state(self) -> dict[str, Any]:
        return {"positive_weights": self._positive_weights_G}

    def restore(self, state: dict[str, Any]) -> None:
        self._positive_weights_G = state["positive_weights"]

    def _weigh(self, validation: Evaluation) -> None:
        if self.targets == "once":
            return  # a share that is weighted is no share
        best_N = best_exits(validation.losses_LN.T, self.cost_L, self.cost_weight)
        self._positive_weights_G = positive_weights(gate_targets(best_N, len(self.trainee.gates)))

    def _heads(self, taps: Taps, labels_B: Tensor) -> Losses:
        logits = self.trainee.head_logits(taps)
        losses_BL = _losses(logits, labels_B)
        with torch.no_grad():
            g_BG = torch.cat([gate(one) for gate, one in zip(self.trainee.gates, logits[:-1], strict=True)], 1)
        return Losses(classifier_loss(shares(g_BG.float()), losses_BL[:, :-1]), losses_BL.mean(0))

    def _gates(self, taps: Taps, labels_B: Tensor) -> Losses:
        with torch.no_grad(), evaluating(*self.trainee.heads):
            logits = self.trainee.head_logits(taps)
            losses_BL = _losses(logits, labels_B)
        best_B = best_exits(losses_BL, self.cost_L.to(losses_BL.device), self.cost_weight)
        logit_BG = torch.cat([gate.logit(one) for gate, one in zip(self.trainee.gates, logits[:-1], strict=True)], 1)  # type: ignore[operator]
        loss = functional.binary_cross_entropy_with_logits(
            logit_BG.float(),
            gate_targets(best_B, logit_BG.shape[1], self.targets),
            pos_weight=self._positive_weights_G.to(logit_BG.device),
        )
        return Losses(loss, losses_BL.mean(0))


def _losses(logits: Sequence[Tensor], labels_B: Tensor) -> Tensor:
    """Cross entropies, B×L."""
    return torch.stack([functional.cross_entropy(one_BK.float(), labels_B, reduction="none") for one_BK in logits], 1)
