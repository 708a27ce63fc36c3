"""The settings of ``mdi-exit control`` and ``mdi-exit top``."""

from __future__ import annotations

import getpass
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdi_exit import values
from mdi_exit.config import setting
from mdi_exit.settings import BrokerSettings

__all__ = ["ControlSettings", "TopSettings"]


def _client(resolved: Mapping[str, Any]) -> str:
    """Who gives the orders, unless said otherwise: the user at the broker, else the one at this machine."""
    user = resolved["username"]
    if user is None:
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # a container's user may have no name
            user = ""
    return re.sub(r"[^A-Za-z0-9_-]", "-", user)[:40] or "desk"


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlSettings(BrokerSettings):
    """One order. ``timeout``: seconds to wait for the broker, and then for the answer."""

    client: str = setting(
        "", help="who gives the order, for the log (default: the user)", parse=values.name, metavar="NAME",
        derive=_client,
    )  # fmt: skip
    timeout: float = setting(
        5.0, help="how long to wait for an answer", parse=values.duration, metavar="TIME", show=values.show_seconds
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TopSettings(BrokerSettings):
    """One view. ``picture``: instead of a terminal, once it has something to show."""

    client: str = setting(
        "", help="who gives orders, for the log (default: the user)", parse=values.name, metavar="NAME", derive=_client
    )
    once: bool = setting(False, help="print what there is and end, as without a terminal", parse=values.switch)
    picture: Path | None = setting(
        None, help="draw the screen into a file and end", parse=values.path, metavar="FILE.svg"
    )
    timeout: float = setting(
        5.0, help="with --once or --picture: how long to wait for something to show", parse=values.duration,
        metavar="TIME", show=values.show_seconds,
    )  # fmt: skip
