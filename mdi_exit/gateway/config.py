"""The settings of ``mdi-exit serve``."""

from __future__ import annotations

from dataclasses import dataclass

from mdi_exit import values
from mdi_exit.config import setting
from mdi_exit.settings import ServiceSettings

__all__ = ["GatewaySettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings(ServiceSettings):
    """One gateway of one deployment. Times are seconds."""

    http: values.HostPort = setting(
        values.HostPort("127.0.0.1", 8080), help="where to listen; port 0: a free one", parse=values.host_port,
        metavar="HOST:PORT",
    )  # fmt: skip
    deadline: float = setting(
        10.0, help="how long a request may take that does not say", parse=values.duration, metavar="TIME",
        show=values.show_seconds,
    )  # fmt: skip
    gallery: int = setting(
        24, help="images with their labels that the page has; 0: none", parse=values.integer(0, 500), metavar="N"
    )
