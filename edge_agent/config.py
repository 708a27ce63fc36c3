"""The settings of ``edge-agent``."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import psutil

from mdi_exit import values
from mdi_exit.config import REQUIRED, Resolved, resolve, setting
from mdi_exit.errors import UsageError
from mdi_exit.settings import NodeSettings
from mdi_exit.span import LayerSpan
from mdi_exit.worker_config import WorkerConfig

__all__ = ["AgentSettings", "default_name", "resolve_agent"]


AUTO: Final = "auto"
_SHARE_OF_FREE: Final = 0.5


def agent_layers(text: str) -> LayerSpan | Literal["auto"]:
    """A span, or ``auto``."""
    return AUTO if text.strip() == AUTO else LayerSpan.parse(text)


def free_memory_bytes() -> int:
    """What an agent takes for a model unless told: half of what is free now, since a move holds two spans for a moment."""
    return int(_SHARE_OF_FREE * psutil.virtual_memory().available)


def default_name(host: str, span: LayerSpan | Literal["auto"]) -> str:
    """A name fit for a topic, from the machine's name and the span."""
    suffix = f"-{span}"
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", host.partition(".")[0]).strip("-") or "agent"
    return stem[: 40 - len(suffix)] + suffix


def _derived_name(resolved: Mapping[str, Any]) -> str:
    return default_name(socket.gethostname(), resolved["layers"])


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings(NodeSettings):
    """One agent. ``model`` None: from the broker."""

    layers: LayerSpan | Literal["auto"] = setting(
        REQUIRED, help="the span of layers to run, inclusive: 4-8; auto: as the source decides", parse=agent_layers,
        metavar="SPAN",
    )  # fmt: skip
    memory: int | None = setting(
        None, help="auto: for the model's layers, such as 512MB; default: half of what is free at start",
        parse=values.memory, metavar="SIZE", show=values.show_memory,
    )  # fmt: skip
    name: str = setting(
        None, help="unique in the deployment; default: host and span", parse=values.name, derive=_derived_name
    )
    model: Path | None = setting(
        None, help="a local artifact instead of the source's", parse=values.path, metavar="NAME-or-PATH"
    )

    @property
    def span(self) -> LayerSpan | None:
        """The span to begin with; None: to be given one."""
        return self.layers if isinstance(self.layers, LayerSpan) else None

    def node(self, engine: str, emulated: str) -> WorkerConfig:
        """What the core is told at this start."""
        config = self.worker(self.name, self.span, engine, emulated)
        if self.span is not None:
            return config
        return replace(config, auto=True, memory_bytes=self.memory or free_memory_bytes())

    def __post_init__(self) -> None:
        NodeSettings.__post_init__(self)
        if self.memory is not None and self.span is not None:
            raise UsageError("--memory", "--layers auto to go with it", f"--layers {self.layers}")
        if self.engine == "torch" and self.model is None:
            raise UsageError("--engine torch", "a local artifact (--model)", "none")


def resolve_agent(argv: Sequence[str], env: Mapping[str, str]) -> Resolved[AgentSettings]:
    """See ``mdi_exit.config.resolve``."""
    return resolve(
        AgentSettings, argv, env, prog="edge-agent", section="agent",
        description="One node of a distributed model: runs its layers for whoever sends it features by MQTT.",
    )  # fmt: skip
