"""The settings of ``mdi-exit train-hierarchical``."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mdi_exit import values
from mdi_exit.config import REQUIRED, Derived, setting
from mdi_exit.errors import UsageError
from mdi_exit.settings import ServiceSettings
from mdi_exit.tensors import CODECS
from mdi_exit.training.samples import AUGMENTATIONS

__all__ = ["LINKS", "ROLES", "SCHEMES", "HierarchicalSettings", "Outage", "bit_rate", "check_use", "show_bit_rate"]

SCHEMES: Final = ("hierarchical", "split", "cloud", "edge")
ROLES: Final = ("all", "edge", "cloud")
LINKS: Final = ("auto", "kernel", "relay")
_RATE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(bit|kbit|Mbit|Gbit)(?:/s)?")
_USED_BY: Final = {
    "link": ("all",), "shaping": ("all",), "outage": ("all",), "shard": ("edge",), "cloud": ("edge",),
    "name": ("edge", "cloud"),
}  # fmt: skip
_BITS: Final = {"bit": 1.0, "kbit": 1e3, "Mbit": 1e6, "Gbit": 1e9}


def bit_rate(text: str) -> float:
    """``1Mbit``, ``500kbit``: bytes a second. Raises ``UsageError``."""
    match = _RATE.fullmatch(text.strip())
    if match is None or not float(match[1]):
        raise UsageError("", "a rate such as 500kbit or 1Mbit (a second)", repr(text))
    return float(match[1]) * _BITS[match[2]] / 8


def show_bit_rate(value: float | None) -> str:
    return "not shaped" if value is None else f"{8 * value / 1e6:g}Mbit"


@dataclass(frozen=True, slots=True)
class Outage:
    """The link is cut for ``for_s``: once ``at_share`` of the steps are done, or ``at_s`` after training began."""

    at_s: float
    for_s: float
    at_share: float = 0.0


def _outage(text: str) -> Outage:
    at, colon, length = text.partition(":")
    if not colon:
        raise UsageError("", "when and how long, as 20s:30s or 30%:30s", repr(text))
    if not at.endswith("%"):
        return Outage(values.duration(at), values.duration(length))
    return Outage(0.0, values.duration(length), values.integer(0, 99)(at.removesuffix("%")) / 100)


def _show_outage(value: Outage | None) -> str:
    if value is None:
        return "none"
    at = f"{100 * value.at_share:g}%" if value.at_share else f"{value.at_s:g}s"
    return f"{at}:{value.for_s:g}s"


def _cut(text: str) -> int | None:
    return None if text.strip() == "auto" else values.integer(0, 4096)(text)


def _shard(text: str) -> tuple[int, int]:
    part, _, whole = text.partition("/")
    try:
        number, count = int(part), int(whole)
    except ValueError:
        number, count = 0, 0
    if not 1 <= number <= count <= 64:
        raise UsageError("", "which part of how many, as 1/2", repr(text))
    return number, count


def _shape(text: str) -> tuple[int, int, int]:
    shape = values.image_shape(text)
    if shape[0] not in (1, 3):
        raise UsageError("", "1 or 3 channels", repr(text))
    return shape


def _one_of(known: tuple[str, ...]) -> Any:
    def parse(text: str) -> tuple[str, ...]:
        names = known if text.strip() == "all" else tuple(part.strip() for part in text.split(","))
        if wrong := [name for name in names if name not in known]:
            raise UsageError("", f"all, or of {', '.join(known)}", repr(wrong[0]))
        return names

    return parse


@dataclass(frozen=True, slots=True, kw_only=True)
class HierarchicalSettings(ServiceSettings):
    """``cut`` None: the runtime model chooses. ``link``: bytes a second, None: not shaped. Times are seconds."""

    out: Path = setting(
        REQUIRED, help="folder of the artifact; checkpoints go beside it", parse=values.path, metavar="DIR"
    )
    role: str = setting("all", help="all: this command starts the others, on this machine", choices=ROLES)
    schemes: tuple[str, ...] = setting(
        ("hierarchical",), flag="--scheme", parse=_one_of(SCHEMES), metavar="NAME,...",
        show=lambda value: ",".join(value),
        help="hierarchical; to compare: split (gradients return), cloud (raw data is sent), edge (all there); or all",
    )  # fmt: skip
    name: str = setting(
        None, parse=values.name, metavar="NAME",
        help="of this worker, and of its user where the broker has an access list; usually edge1 or cloud",
        derive=lambda resolved: Derived("edge1" if resolved["role"] == "edge" else "cloud", "role"),
    )  # fmt: skip
    cloud: str = setting("cloud", help="edge: the name of the cloud worker", parse=values.name, metavar="NAME")
    edges: int = setting(1, help="how many edges learn", parse=values.integer(1, 16), metavar="N")
    shard: tuple[int, int] = setting(
        (1, 1), help="edge: which part of the training samples is its own, as 1/2", parse=_shard, metavar="I/N",
        show=lambda value: "/".join(map(str, value)),
    )  # fmt: skip
    data: str = setting(
        "fashion-mnist",
        help="images: fashion-mnist, cifar10, cifar100, svhn, composite, folder:PATH or npz:FILE",
        metavar="SPEC",
        also=("--dataset",),
    )
    input_shape: tuple[int, int, int] | None = setting(
        None, parse=_shape, metavar="C,H,W", help="what the model takes",
        show=lambda value: ",".join(map(str, value)) if value else "the images' own",
    )  # fmt: skip
    model: str = setting(
        "small_resnet18",
        help="small_vgg16, small_resnet18, mobilenetv2, resnet18, ...: see mdi-exit train",
        metavar="MODEL",
    )
    width: float | None = setting(
        None, help="share of the channels, of models that have one", parse=values.positive_float, metavar="W"
    )
    cut: int | None = setting(
        None, help="the layer after which the network is cut; auto: the fastest, by measurement", parse=_cut,
        metavar="N|auto", show=lambda value: "auto" if value is None else str(value),
    )  # fmt: skip
    codec: str = setting("int8", help="of the features on the way", choices=CODECS)
    gradient_codec: str = setting("float16", help="split: of the gradients on the way back", choices=CODECS)
    link: float | None = setting(
        None, help="shape each edge's link, both ways: 500kbit, 1Mbit", parse=bit_rate,
        metavar="RATE", show=show_bit_rate,
    )  # fmt: skip
    shaping: str = setting("auto", help="by the kernel, or by relays in user space", choices=LINKS)
    outage: Outage | None = setting(
        None, parse=_outage, metavar="AT:FOR", show=_show_outage,
        help="cut the link on purpose: 20s:30s is after 20 s, for 30 s; 30%:30s is after that share of the steps",
    )  # fmt: skip
    epochs: int = setting(3, help="over each edge's own samples", parse=values.positive_int, metavar="N")
    steps: int | None = setting(None, help="stop each edge after N steps", parse=values.positive_int, metavar="N")
    limit: int | None = setting(
        None,
        help="use only the first N training samples, of all edges together",
        parse=values.positive_int,
        metavar="N",
    )
    batch_size: int = setting(50, help="samples a step", parse=values.integer(2, 4096), metavar="N")
    learning_rate: float = setting(0.05, help="peak", parse=values.positive_float, metavar="R")
    augment: str = setting("mirror-shift", help="of the images", choices=AUGMENTATIONS)
    window: int = setting(4, help="batches that an edge may have on the way", parse=values.integer(1, 256), metavar="N")
    staleness: int = setting(
        16,
        help="older batches, in steps of their edge, are not learned from",
        parse=values.integer(1, 2**31),
        metavar="N",
    )
    dead_after: float = setting(
        8.0, help="silence after which the link counts as lost", parse=values.duration, metavar="TIME",
        show=values.show_seconds,
    )  # fmt: skip
    give_up: float = setting(
        600.0, help="how long to wait for a lost link, a lost edge or the cloud", parse=values.duration, metavar="TIME",
        show=values.show_seconds,
    )  # fmt: skip
    checkpoint_every: float = setting(
        20.0, help="time between checkpoints", parse=values.duration, metavar="TIME", show=values.show_seconds
    )
    slow_edge: float = setting(
        1.0, help="make the edge's computing take so many times as long (emulation)", parse=values.positive_float,
        metavar="X",
    )  # fmt: skip
    seed: int = setting(0, help="of split, weights and order", parse=values.integer(0, 2**32 - 1), metavar="N")
    threads: int = setting(1, help="of torch, for each worker", parse=values.positive_int, metavar="N")
    data_dir: Path = setting(
        Path("data"), help="where data sets are looked for and stored", parse=values.path, metavar="DIR"
    )

    def __post_init__(self) -> None:
        ServiceSettings.__post_init__(self)
        if self.slow_edge < 1:
            raise UsageError("--slow-edge", "a number of at least 1", self.slow_edge)
        if "edge" in self.schemes and self.edges > 1:
            raise UsageError("--scheme", f"schemes with a cloud for --edges {self.edges}", ",".join(self.schemes))
        if self.role != "all" and len(self.schemes) != 1:
            raise UsageError("--scheme", f"one for --role {self.role}", ",".join(self.schemes))
        if self.role == "edge" and self.shard[1] not in (1, self.edges):
            raise UsageError("--shard", f"I/{self.edges}, as --edges says, or 1/1", f"{self.shard[0]}/{self.shard[1]}")

    @property
    def scheme(self) -> str:
        return self.schemes[0]

    @property
    def work(self) -> Path:
        """Where logs, checkpoints and figures go."""
        return self.out.with_name(f"{self.out.name}.training")


def check_use(settings: HierarchicalSettings, flags: Collection[str]) -> None:
    """Raises ``UsageError`` where one of ``flags``, settings given on the command line, would do nothing.

    The environment and a file are not asked: they may serve workers of several roles.
    """
    for key in sorted(set(flags) & set(_USED_BY)):
        if settings.role not in _USED_BY[key]:
            raise UsageError(f"--{key}", f"--role {' or '.join(_USED_BY[key])} with it", settings.role)
    if settings.schemes == ("edge",) and (without := sorted(set(flags) & {"link", "shaping", "outage"})):
        raise UsageError(f"--{without[0]}", "a scheme that has a link", "edge")
