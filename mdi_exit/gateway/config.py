"""The settings of ``mdi-exit serve``."""

from __future__ import annotations

from dataclasses import dataclass

from mdi_exit import values
from mdi_exit.config import setting
from mdi_exit.errors import UsageError
from mdi_exit.logs import FORMATS, LEVELS

__all__ = ["GatewaySettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """One gateway of one deployment. Times are seconds."""

    broker: values.BrokerAddress = setting(
        values.BrokerAddress("127.0.0.1", 1883), help="mqtt[s]://HOST:PORT", parse=values.broker_address, metavar="URL"
    )
    deployment: str = setting("default", help="the system to speak for", parse=values.name, metavar="NAME")
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
    username: str | None = setting(None, help="user at the broker", parse=values.text)
    password: str | None = setting(None, help="file with the password at the broker", parse=values.text, secret=True)
    log_format: str = setting("plain", help="lines for people or JSON", choices=FORMATS)
    log_level: str = setting("info", help="what to log", choices=LEVELS)

    def __post_init__(self) -> None:
        if self.password is not None and self.username is None:
            raise UsageError("--username", "a user to go with the password", "none")
