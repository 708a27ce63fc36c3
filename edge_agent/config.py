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
from mdi_exit.errors import UsageError
from mdi_exit.settings import NodeSettings
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
class AgentSettings(NodeSettings):
    """One agent. ``model`` None: from the broker."""

    layers: LayerSpan = setting(
        REQUIRED, help="the span of layers to run, inclusive: 4-8", parse=agent_layers, metavar="SPAN"
    )
    name: str = setting(
        None, help="unique in the deployment; default: host and span", parse=values.name, derive=_derived_name
    )
    model: Path | None = setting(
        None, help="a local artifact instead of the source's", parse=values.path, metavar="NAME-or-PATH"
    )

    def __post_init__(self) -> None:
        NodeSettings.__post_init__(self)
        if self.engine == "torch" and self.model is None:
            raise UsageError("--engine torch", "a local artifact (--model)", "none")


def resolve_agent(argv: Sequence[str], env: Mapping[str, str]) -> Resolved[AgentSettings]:
    """See ``mdi_exit.config.resolve``."""
    return resolve(
        AgentSettings, argv, env, prog="edge-agent", section="agent",
        description="One node of a distributed model: runs its layers for whoever sends it features by MQTT.",
    )  # fmt: skip
