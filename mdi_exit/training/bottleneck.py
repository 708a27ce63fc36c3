"""A learned bottleneck on a cut: an autoencoder trained after the fact, with the network frozen.

MDI-Exit shrinks ResNet-50's first feature map so (arXiv 2408.05247); the small convolutional encoder and decoder, and the
training through the layers that follow, are BottleNet++'s (arXiv 1902.01000), without its channel model. The loss is

    mean((f' - f)²) / var(f)  +  kl_weight · mean over the later exits of KL(softmax(z) ‖ softmax(z'))

with f the features at the cut, f' what the decoder makes of their code, z and z' the logits that follow from each. The
network's own logits are the target, so that no labels are needed. Which constants there are is ours.

Shapes: N samples, C×H×W features, B a batch; c channels of the code.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mdi_exit.model.export import macs, onnx_bytes
from mdi_exit.model.network import MultiExitNetwork
from mdi_exit.model.variant import Halves
from mdi_exit.tensors import PLAIN_CODECS, without_compression
from mdi_exit.training.checkpoint import read_checkpoint, write_checkpoint

__all__ = [
    "Autoencoder",
    "BottleneckConfig",
    "BottleneckTraining",
    "autoencoder",
    "exported",
    "logits_after",
    "train_bottleneck",
]

_LOOK_AT = 512  # samples whose features say whether any are negative


class Autoencoder(nn.Module):
    """``encoder``: features to code; ``decoder``: back. ``steps``: of the code's codec (0: none), felt in training."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.steps = 0

    def forward(self, x_N: Tensor) -> Tensor:
        code_N = self.encoder(x_N)
        if self.training and self.steps:
            code_N = _stepped(code_N, self.steps)
        decoded_N: Tensor = self.decoder(code_N)
        return decoded_N


def _stepped(x_NC: Tensor, steps: int) -> Tensor:
    """What int8 (127 steps) or int4 (7) makes of it, channel by channel; gradients pass as if it were nothing."""
    axes = tuple(range(2, x_NC.ndim))
    scale_NC = x_NC.detach().abs().amax(axes, keepdim=True).clamp(min=1e-12) / steps
    return x_NC + ((x_NC / scale_NC).round() * scale_NC - x_NC).detach()


class _Crop(nn.Module):
    """The first ``height``×``width`` of each map: a stride that does not divide them makes them larger."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return x_NCHW[:, :, : self.height, : self.width]


def autoencoder(shape: tuple[int, ...], channels: int, stride: int = 1, *, positive: bool = False) -> Autoencoder:
    """An untrained autoencoder for features of ``shape`` (without batch).

    C×H×W (H equal to W, or C other than H): the code is c×⌈H/stride⌉×⌈W/stride⌉. Encoder: one strided convolution, norm.
    Decoder: 3×3 convolution to 2c channels (not above C/2, unless c is), norm, ReLU, pointwise convolution, pixels shuffled
    to the old size. Anything else (H×W×C, T×D, D): a linear map of the last axis and one back. ``positive``: the features
    have no value below 0, so the decoded ones shall have none. Raises ``ValueError``.
    """
    is_maps = len(shape) == 3 and not shape[0] == shape[1] != shape[2]
    width = shape[0] if is_maps else shape[-1] if shape else 0
    if not 0 < channels < 2 * width or stride < 1 or (stride > 1 and not is_maps):
        strides = "a stride of at least 1" if is_maps else "no stride"
        raise ValueError(
            f"expected 1 to {max(2 * width - 1, 0)} channels and {strides} for {shape}, got {channels}x{stride}"
        )
    last: list[nn.Module] = [nn.ReLU()] if positive else []
    if not is_maps:
        return Autoencoder(nn.Linear(width, channels), nn.Sequential(nn.Linear(channels, width), *last))
    _, height, across = shape
    if stride > min(height, across):
        raise ValueError(f"expected a stride of at most {min(height, across)} for {shape}, got {stride}")
    encoder = nn.Sequential(
        nn.Conv2d(width, channels, 2 * stride - 1, stride=stride, padding=stride - 1, bias=False),
        nn.BatchNorm2d(channels),
    )
    larger: list[nn.Module] = [nn.PixelShuffle(stride)] if stride > 1 else []
    if height % stride or across % stride:
        larger.append(_Crop(height, across))
    between = max(channels, min(2 * channels, width // 2))
    decoder = nn.Sequential(
        nn.Conv2d(channels, between, 3, padding=1, bias=False),
        nn.BatchNorm2d(between),
        nn.ReLU(),
        nn.Conv2d(between, width * stride**2, 1),
        *larger,
        *last,
    )
    return Autoencoder(encoder, decoder)


def exported(made: Autoencoder, shape: tuple[int, ...]) -> Halves:
    """Both halves as ONNX graphs for features of ``shape`` (without batch), in evaluation mode."""
    made = made.eval().to(memory_format=torch.contiguous_format)
    x_N = torch.zeros(2, *shape)
    with torch.no_grad():
        code_N = made.encoder(x_N)
    encoder_macs = macs(made.encoder, x_N)
    return Halves(
        encoder=onnx_bytes(made.encoder, x_N),
        decoder=onnx_bytes(made.decoder, code_N),
        shape=tuple(code_N.shape[1:]),
        macs=encoder_macs + macs(made.decoder, code_N),
        encoder_macs=encoder_macs,
        params=sum(parameter.numel() for parameter in made.parameters()),
    )


@dataclass(frozen=True, slots=True)
class BottleneckConfig:
    """``codec``: in which the code is to travel; what it rounds is felt in training. ``learning_rate``: Adam's highest."""

    epochs: int = 4
    batch_size: int = 64
    learning_rate: float = 4e-3
    kl_weight: float = 1.0
    codec: str = "float32"
    seed: int = 0
    threads: int = 2


@dataclass(frozen=True, slots=True)
class BottleneckTraining:
    """``losses``: mean of each epoch; ``seconds``: of all epochs, those of an earlier run that was cut short included."""

    autoencoder: Autoencoder
    losses: tuple[float, ...]
    seconds: float


def train_bottleneck(
    network: MultiExitNetwork,
    cut: int,
    images_NCHW: Tensor,
    channels: int,
    stride: int,
    config: BottleneckConfig,
    *,
    before: Mapping[int, Autoencoder] | None = None,
    checkpoint: Path | None = None,
    progress: Callable[[int, int, int, float], None] | None = None,
) -> BottleneckTraining:
    """An autoencoder for what enters layer ``cut`` (1 to L-1), trained on ``images_NCHW``; the network stays as it is.

    ``before``: those of earlier cuts, through which the features come. ``progress``: epoch, step, steps, mean loss so far.
    With ``checkpoint`` the state is saved there after each epoch, and a run for the same purpose goes on from it. Raises
    ``ValueError`` for channels or a stride that do not fit, ``UsageError`` for a file that is no checkpoint.
    """
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.threads)
    wanted = [parameter.requires_grad for parameter in network.parameters()]
    network.eval().requires_grad_(requires_grad=False)
    try:
        run = _Run(network, cut, images_NCHW, config, before or {})
        run.begin(channels, stride)
        return run.trained(checkpoint, progress)
    finally:
        for parameter, needs in zip(network.parameters(), wanted, strict=True):
            parameter.requires_grad_(needs)


def logits_after(
    network: MultiExitNetwork, x_N: Tensor, cut: int, codes: Mapping[int, Autoencoder] | None = None
) -> list[Tensor]:
    """Logits of the exits behind ``cut``, from the features that enter it; ``codes``: autoencoders of later cuts."""
    logits = []
    for index in range(cut, len(network.layers)):
        if codes and index > cut and index in codes:
            x_N = codes[index](x_N)
        x_N = network.layers[index](x_N)
        if index in network.exit_layers:
            logits.append(network.exits[str(index)](x_N))
    return logits


class _Run:
    """One training."""

    def __init__(
        self,
        network: MultiExitNetwork,
        cut: int,
        images_NCHW: Tensor,
        config: BottleneckConfig,
        before: Mapping[int, Autoencoder],
    ) -> None:
        self.network, self.cut, self.images_NCHW, self.config = network, cut, images_NCHW, config
        self.before = {at: code.eval() for at, code in before.items() if at < cut}
        self.generator = torch.Generator().manual_seed(config.seed)
        self.size = min(config.batch_size, len(images_NCHW))
        self.steps = len(images_NCHW) // self.size
        self.made = Autoencoder(nn.Identity(), nn.Identity())
        self.variance = 1.0
        self.targets_NK: list[Tensor] = []

    def begin(self, channels: int, stride: int) -> None:
        """Look at some features and make what is to be trained."""
        x_N = self.features(self.images_NCHW[:_LOOK_AT])
        self.variance = max(float(x_N.var()), 1e-12)
        positive = bool((x_N >= 0).all())
        self.made = autoencoder(tuple(x_N.shape[1:]), channels, stride, positive=positive)
        self.made.steps = PLAIN_CODECS[without_compression(self.config.codec)].steps
        self.made.to(memory_format=torch.channels_last)
        self.targets_NK = self._targets()

    def _targets(self) -> list[Tensor]:
        """Logits of each later exit for all images, by the network as it is: the same in every epoch."""
        with torch.no_grad():
            parts = [
                logits_after(self.network, self.features(self.images_NCHW[begin : begin + self.size]), self.cut)
                for begin in range(0, len(self.images_NCHW), self.size)
            ]
        return [torch.cat(logits) for logits in zip(*parts, strict=True)]

    def features(self, images_NCHW: Tensor) -> Tensor:
        """What enters the cut."""
        with torch.no_grad():
            x_N = images_NCHW.contiguous(memory_format=torch.channels_last)
            for index in range(self.cut):
                x_N = self.network.layers[index](self.before[index](x_N) if index in self.before else x_N)
        return x_N

    def loss(self, rows_B: Tensor) -> Tensor:
        x_B = self.features(self.images_NCHW[rows_B])
        decoded_B = self.made(x_B)
        divergences = [
            functional.kl_div(
                z_BK.log_softmax(1), target_NK[rows_B].log_softmax(1), reduction="batchmean", log_target=True
            )
            for z_BK, target_NK in zip(logits_after(self.network, decoded_B, self.cut), self.targets_NK, strict=True)
        ]
        error = functional.mse_loss(decoded_B, x_B) / self.variance
        return error + self.config.kl_weight * torch.stack(divergences).mean()

    def trained(
        self, checkpoint: Path | None, progress: Callable[[int, int, int, float], None] | None
    ) -> BottleneckTraining:
        optimiser = torch.optim.Adam(self.made.parameters(), self.config.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self.config.epochs * self.steps)
        losses: list[float] = []
        earlier_s, begin = 0.0, time.monotonic()
        saved = read_checkpoint(checkpoint, self._purpose()) if checkpoint is not None else {}
        if saved:
            self.made.load_state_dict(saved["made"])
            optimiser.load_state_dict(saved["optimiser"])
            schedule.load_state_dict(saved["schedule"])
            self.generator.set_state(saved["generator"])
            losses, earlier_s = list(saved["losses"]), float(saved["seconds"])
        for epoch in range(len(losses), self.config.epochs):
            self.made.train()
            total = 0.0
            for step, rows_B in enumerate(self._draws()):
                loss = self.loss(rows_B)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
                total += float(loss.detach())
                if progress is not None:
                    progress(epoch, step + 1, self.steps, total / (step + 1))
            losses.append(total / self.steps)
            if checkpoint is not None:
                state = {
                    "purpose": self._purpose(),
                    "made": self.made.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "schedule": schedule.state_dict(),
                    "generator": self.generator.get_state(),
                    "losses": losses,
                    "seconds": earlier_s + time.monotonic() - begin,
                }
                write_checkpoint(checkpoint, state)
        return BottleneckTraining(self.made.eval(), tuple(losses), earlier_s + time.monotonic() - begin)

    def _draws(self) -> Iterator[Tensor]:
        order_N = torch.randperm(len(self.images_NCHW), generator=self.generator)
        for start in range(0, self.steps * self.size, self.size):
            yield order_N[start : start + self.size]

    def _purpose(self) -> dict[str, Any]:
        """What a checkpoint must have been saved for: settings, shapes, and weights and data by their sums."""
        weights = [float(parameter.double().sum()) for parameter in self.network.parameters()]
        return {
            "config": asdict(self.config),
            "cut": self.cut,
            "made": {key: list(value.shape) for key, value in self.made.state_dict().items()},
            "network": weights,
            "before": {
                str(at): [float(p.detach().double().sum()) for p in c.parameters()] for at, c in self.before.items()
            },
            "data": [list(self.images_NCHW.shape), float(self.images_NCHW[:64].double().sum())],
        }
