"""The settings of ``mdi-exit train``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mdi_exit import values
from mdi_exit.config import REQUIRED, setting
from mdi_exit.errors import UsageError
from mdi_exit.training.loop import PRECISIONS
from mdi_exit.training.samples import AUGMENTATIONS
from mdi_exit.training.strategies.distill import TEACHING_SHARE, TEMPERATURE
from mdi_exit.training.strategies.jei import COST_WEIGHT, GATE_TARGETS, LINEAR_EPOCHS, WARM_UP_EPOCHS

__all__ = ["STRATEGIES", "TrainSettings"]

STRATEGIES: Final = ("joint", "frozen", "distill", "jei")
_MOST_EXITS: Final = 4096


def _shape(text: str) -> tuple[int, int, int]:
    shape = values.image_shape(text)
    if shape[0] not in (1, 3):
        raise UsageError("", "1 or 3 channels", repr(text))
    return shape


def _exits(text: str) -> int | tuple[int, ...]:
    """How many (``4``), or after which layers (``1,3,5``; ``1,`` is one layer)."""
    parts = [part.strip() for part in text.removesuffix(",").split(",")]
    if not all(part.isdecimal() and int(part) <= _MOST_EXITS for part in parts):
        raise UsageError("", "how many, as 4, or layers, as 1,3,5", repr(text))
    numbers = tuple(int(part) for part in parts)
    if len(numbers) == 1 and "," not in text:
        return numbers[0]
    if list(numbers) != sorted(set(numbers)):
        raise UsageError("", "rising layers", repr(text))
    return numbers


def _show_numbers(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _share(text: str) -> float:
    found = values.positive_float(text)
    if found > 1:
        raise UsageError("", "a number above 0 and at most 1", repr(text))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """``model``: see ``mdi_exit.model.build``. ``start`` (``--from``): an artifact of the same layers, and without ``model``
    and ``width`` the model too."""

    data: str = setting(
        "fashion-mnist", also=("--dataset",), metavar="SPEC",
        help="on what: fashion-mnist, cifar10, cifar100, svhn, composite, folder:PATH or npz:FILE",
    )  # fmt: skip
    model: str | None = setting(
        None, metavar="MODEL",
        help="mobilenetv2, small_resnet18, ..., a name of torchvision's, MODULE:FACTORY or FILE.pt2 (default: that of "
        "--from, else mobilenetv2)",
    )  # fmt: skip
    out: Path = setting(REQUIRED, help="folder of the artifact", parse=values.path, metavar="DIR")
    strategy: str = setting("joint", help="how the exits learn", choices=STRATEGIES)
    exits: int | tuple[int, ...] | None = setting(
        None, parse=_exits, metavar="N|L,L,...", show=_show_numbers,
        help="how many, spread evenly by cost, or after which layers (default: the model's own, or 4)",
    )  # fmt: skip
    exit_weights: str = setting(
        "half", help="joint, distill: of the exits' losses: half, uniform, linear or W,W,...", metavar="WEIGHTS"
    )
    width: float | None = setting(
        None, help="of all channels of the house's own models", parse=values.positive_float, metavar="W"
    )
    weights: Path | None = setting(
        None, help="a state dict of the named model, .pt or .safetensors", parse=values.path, metavar="FILE"
    )
    start: Path | None = setting(
        None,
        flag="--from",
        parse=values.path,
        metavar="ARTIFACT",
        help="begin with the layers of an artifact, trained or partitioned",
    )
    input_shape: tuple[int, int, int] | None = setting(
        None, parse=_shape, metavar="C,H,W", show=_show_numbers, help="what the model takes (default: the images' own)"
    )
    max_length: int = setting(
        128, help="of texts, in tokens; what is longer is cut off", parse=values.integer(2, 65_536), metavar="N"
    )
    epochs: int = setting(12, help="of all exits; frozen: of the heads; jei: of heads and gates in turns",
                          parse=values.positive_int, metavar="N")  # fmt: skip
    backbone_epochs: int = setting(
        12, help="frozen, jei: of the backbone alone, before (0 with --from or --weights)", parse=values.integer(0),
        metavar="N",
    )  # fmt: skip
    warm_up_epochs: int | None = setting(
        None, help="jei: of the heads alone, at most: each stops by itself "
        f"(default: {WARM_UP_EPOCHS}; {LINEAR_EPOCHS} for texts)",
        parse=values.positive_int, metavar="N",
    )  # fmt: skip
    batch_size: int = setting(128, help="samples a step (jei: 64)", parse=values.positive_int, metavar="N")
    learning_rate: float = setting(
        0.08, help="peak (jei's heads and gates have their own)", parse=values.positive_float, metavar="R"
    )
    augment: str = setting("mirror-shift", help="of the images", choices=AUGMENTATIONS)
    precision: str = setting("auto", help="auto: float32 on a CPU, mixed on a GPU", choices=PRECISIONS)
    temperature: float = setting(
        TEMPERATURE, help="distill: of the last exit's teaching", parse=values.positive_float, metavar="T"
    )
    teaching_share: float = setting(
        TEACHING_SHARE, help="distill: its share of an early exit's loss", parse=_share, metavar="S"
    )
    cost_weight: float = setting(
        COST_WEIGHT, help="jei: what the whole network's cost weighs against cross entropy (λ)",
        parse=values.positive_float, metavar="X",
    )  # fmt: skip
    gate_targets: str | None = setting(
        None, help="jei: 1 from the best exit's gate onward, as the paper has it, or once, at it alone "
        "(default: onward; once for texts)", choices=GATE_TARGETS,
    )  # fmt: skip
    validation: int | None = setting(
        None,
        help="samples held out of training (default: a tenth, at most 5000)",
        parse=values.positive_int,
        metavar="N",
    )
    limit: int | None = setting(
        None, help="use only the first N training images", parse=values.positive_int, metavar="N"
    )
    seed: int = setting(0, help="of split, weights and order", parse=values.integer(0), metavar="N")
    data_dir: Path = setting(
        Path("data"), help="where data sets are looked for and stored", parse=values.path, metavar="DIR"
    )
    threads: int = setting(2, help="of torch on a CPU", parse=values.positive_int, metavar="N")
    tensorboard: bool = setting(
        False, help="event files beside the artifact (needs the package tensorboard)", parse=values.switch
    )
