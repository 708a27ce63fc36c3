"""The settings of ``edge-agent``."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdi_exit import values
from mdi_exit.config import REQUIRED, Resolved, resolve, setting
from mdi_exit.energy import DEVICES
from mdi_exit.engine import ENGINES
from mdi_exit.errors import UsageError
from mdi_exit.logs import FORMATS, LEVELS
from mdi_exit.span import LayerSpan

__all__ = ["AgentSettings", "default_name", "resolve_agent"]


def agent_layers(text: str) -> LayerSpan:
    """A span; ``auto`` is refused until there is someone to choose."""
    if text.strip() == "auto":
        raise UsageError("", "FIRST-LAST such as 4-8 (the placement planner does not exist yet)", "auto")
    return LayerSpan.parse(text)


def default_name(host: str, span: LayerSpan) -> str:
    """A name fit for a topic, from the machine's name and the span."""
    suffix = f"-{span}"
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", host.partition(".")[0]).strip("-") or "agent"
    return stem[: 40 - len(suffix)] + suffix


def _derived_name(resolved: Mapping[str, Any]) -> str:
    return default_name(socket.gethostname(), resolved["layers"])


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """One agent. Times are seconds. ``neighbours`` None: every node; ``model`` None: from the broker."""

    layers: LayerSpan = setting(
        REQUIRED, help="the span of layers to run, inclusive: 4-8", parse=agent_layers, metavar="SPAN"
    )
    broker: values.BrokerAddress = setting(
        values.BROKER_AUTO, help="mqtt[s]://HOST:PORT; auto: on this machine, else found by mDNS",
        parse=values.broker_address, metavar="URL",
    )  # fmt: skip
    name: str = setting(
        None, help="unique in the deployment; default: host and span", parse=values.name, derive=_derived_name
    )
    deployment: str = setting("default", help="keeps systems on one broker apart", parse=values.name, metavar="NAME")
    model: Path | None = setting(
        None, help="a local artifact instead of the source's", parse=values.path, metavar="NAME-or-PATH"
    )
    neighbours: tuple[str, ...] | None = setting(
        None, help="the only nodes to send to: NAME,NAME", parse=values.names, metavar="NAMES"
    )
    metrics: values.HostPort | None = setting(
        values.HostPort("127.0.0.1", 0), help="where to serve metrics; port 0: a free one; off: not at all",
        parse=values.host_port_or_off, metavar="HOST:PORT", show=values.show_off,
    )  # fmt: skip
    device: str | None = setting(
        None, help="the board, for an estimate of its energy where no sensor is; default: that of --profile",
        choices=tuple(DEVICES),
    )  # fmt: skip
    profile: str | None = setting(
        None, help="stretch compute to a named device (emulation)", parse=values.device, metavar="DEVICE"
    )
    engine: str = setting("onnxruntime", help="what runs a segment", choices=ENGINES)
    threads: int = setting(1, help="compute threads of the engine", parse=values.integer(1, 256), metavar="N")
    window: int = setting(
        16, help="tasks that a sender may have waiting here for each entry layer", parse=values.integer(1, 4096),
        metavar="N",
    )  # fmt: skip
    telemetry_period: float = setting(
        0.5, help="time between load reports", parse=values.duration, metavar="TIME", show=values.show_seconds
    )
    keepalive: float = setting(
        5.0, help="silence after which the broker declares us dead", parse=values.duration, metavar="TIME",
        show=values.show_seconds,
    )  # fmt: skip
    username: str | None = setting(None, help="user at the broker", parse=values.text)
    password: str | None = setting(None, help="file with the password at the broker", parse=values.text, secret=True)
    log_format: str = setting("plain", help="lines for people or JSON", choices=FORMATS)
    log_level: str = setting("info", help="what to log", choices=LEVELS)

    def __post_init__(self) -> None:
        if self.password is not None and self.username is None:
            raise UsageError("--username", "a user to go with the password", "none")
        if self.engine == "torch" and self.model is None:
            raise UsageError("--engine torch", "a local artifact (--model)", "none")


def resolve_agent(argv: Sequence[str], env: Mapping[str, str]) -> Resolved[AgentSettings]:
    """See ``mdi_exit.config.resolve``."""
    return resolve(
        AgentSettings, argv, env, prog="edge-agent", section="agent",
        description="One node of a distributed model: runs its layers for whoever sends it features by MQTT.",
    )  # fmt: skip
