"""The settings of ``mdi-exit demo``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdi_exit import values
from mdi_exit.config import Derived, setting
from mdi_exit.model.artifact import manifest_of
from source.input_kinds import ParsedInput, parse_input

__all__ = ["DemoSettings"]


def _input(known: Mapping[str, Any]) -> ParsedInput | Derived:
    """The images that come with the package; for a model of texts or sound, what it was tested on."""
    found = manifest_of(known["artifact"])
    if found is None or found.input.kind == "image":
        return parse_input("shipped")
    return Derived(parse_input("test"), f"model {known['artifact']}: takes {found.input.kind}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSettings:
    """A demo run. Times are seconds; ``broker`` None: one is started for the run."""

    nodes: int = setting(4, help="nodes, the source included", parse=values.integer(1, 16), metavar="N")
    duration: float = setting(
        30.0, help="how long items are offered", parse=values.duration, metavar="TIME", show=values.show_seconds
    )
    rate: float | None = setting(
        14.0, help="items a second in the calm phases; the load phase offers four times as many, or max",
        parse=values.rate, metavar="N/s", show=values.show_rate,
    )  # fmt: skip
    adapt: str = setting(
        "threshold",
        help="what follows the load",
        choices=("none", "rate", "threshold", "drift-plus-penalty", "optimiser"),
    )
    exit_threshold: float = setting(0.9, help="threshold at the start", parse=values.fraction, metavar="T")
    seed: int = setting(0, help="of the order of the images and of all choices", parse=values.integer(0), metavar="N")
    input: ParsedInput = setting(
        parse_input("shipped"), help="what to classify, see edge-source; test for a model that takes no images",
        parse=parse_input, metavar="SPEC", derive=_input,
    )  # fmt: skip
    artifact: str = setting(
        "fashion-mnist-mobilenetv2",
        help="a shipped model's name, or the path of an artifact",
        metavar="NAME-or-PATH",
        also=("--model",),
    )
    topology: Path | None = setting(
        None, help="a file that describes the nodes instead of --nodes", parse=values.path, metavar="FILE.toml"
    )
    profile: str = setting(
        "jetson-nano", help="device that every node is stretched to; none: this machine's own speed", metavar="DEVICE"
    )
    broker: values.BrokerAddress | None = setting(
        None, help="use this broker instead of starting one", parse=values.broker_address, metavar="URL"
    )
    web: values.HostPort | None = setting(
        None, help="serve the live page meanwhile, by default on 127.0.0.1:8080", parse=values.host_port,
        metavar="HOST:PORT", bare="127.0.0.1:8080",
    )  # fmt: skip
    out: Path = setting(Path("runs/demo"), help="where the files of the run go", parse=values.path, metavar="DIR")
