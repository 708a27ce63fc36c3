"""Self-distillation: early exits learn from the labels and from what the last exit says of the same image.

After Zhang et al., "Be Your Own Teacher" (arXiv 1905.08094), without its loss on features, and Phuong and Lampert,
"Distillation-based Training for Multi-exit Architectures" (ICCV 2019). No gradient reaches the last exit through what it
teaches. The temperature and the share are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from mdi_exit.training.phases import Losses, Phase, Taps, Trainee, inputs_of
from mdi_exit.training.recipe import Recipe
from mdi_exit.training.strategies.joint import weighted

__all__ = ["TEACHING_SHARE", "TEMPERATURE", "DistillPhase", "divergence"]

TEMPERATURE = 3.0
TEACHING_SHARE = 0.5


def divergence(student_BK: Tensor, teacher_BK: Tensor, temperature: float) -> Tensor:
    """T²·KL(teacher ‖ student) of the softmax at temperature T, mean over the batch; T² keeps gradients of one size."""
    log_student_BK = functional.log_softmax(student_BK.float() / temperature, 1)
    log_teacher_BK = functional.log_softmax(teacher_BK.detach().float() / temperature, 1)
    return temperature**2 * functional.kl_div(log_student_BK, log_teacher_BK, reduction="batchmean", log_target=True)


class DistillPhase(Phase):
    """All at once; an early exit's loss is (1 - share)·CE + share·T²·KL, the last exit's CE."""

    name: ClassVar = "distill"

    def __init__(
        self,
        trainee: Trainee,
        recipe: Recipe,
        weights_L: Sequence[float],
        *,
        temperature: float = TEMPERATURE,
        share: float = TEACHING_SHARE,
    ) -> None:
        super().__init__(trainee, recipe)
        self.weights_L, self.temperature, self.share = tuple(weights_L), temperature, share

    def trained(self) -> Sequence[nn.Module]:
        return [self.trainee.network]

    def loss(self, step: int, batch: Tensor | Taps, labels_B: Tensor) -> Losses:
        del step
        *early, last_BK = self.trainee.network(inputs_of(batch))
        losses = [
            (1 - self.share) * functional.cross_entropy(one_BK, labels_B)
            + self.share * divergence(one_BK, last_BK, self.temperature)
            for one_BK in early
        ]
        return weighted(self.weights_L, [*losses, functional.cross_entropy(last_BK, labels_B)])
